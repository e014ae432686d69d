"""The training engine: ranks, loop, checkpoints, log."""
