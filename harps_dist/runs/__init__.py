"""A training's folder: its recipe, its checkpoints, its log, its identity."""
