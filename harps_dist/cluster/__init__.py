"""Jobs of SLURM that follow one another."""
