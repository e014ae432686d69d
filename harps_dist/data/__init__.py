"""From a release to batches: manifest, split, order, shard reader, keyed randomness, batches on the device."""
