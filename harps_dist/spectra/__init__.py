"""Grid, labels, Doppler shift, standardisation and the observation model: pure functions of arrays."""
