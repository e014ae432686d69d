"""Trained models in use: spectra from labels."""
