"""How weights and moments lie on the ranks: replicated, or split by DeepSpeed."""
