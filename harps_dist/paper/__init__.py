"""The tables and figures of Cvrček et al. (2024), redone."""
