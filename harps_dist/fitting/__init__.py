"""Labels of spectra by robust least squares of simulated ones: of stellar models, tellurics and a continuum."""
