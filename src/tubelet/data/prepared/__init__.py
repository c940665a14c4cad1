"""Videos re-encoded for training: tar shards in WebDataset layout, with an index for random access to single packets."""
