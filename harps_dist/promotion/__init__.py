"""Whether a new model takes the old one's place: comparison, gate, registry."""
