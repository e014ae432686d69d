"""Encoders from spectra to labels or bottleneck, decoders back to spectra, and their autoencoders."""
