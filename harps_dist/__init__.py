"""harps_dist: train autoencoders and encoders on whole spectrograph archives (Cvrček et al. 2024, distributed)."""

__version__ = "0.1.0"
