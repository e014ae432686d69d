"""Made-up observations: stars, an atmosphere and a spectrograph, written as the archive's files."""
