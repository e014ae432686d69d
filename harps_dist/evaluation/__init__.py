"""Label errors, reconstruction, interventions, and the tables and figures that show them."""
