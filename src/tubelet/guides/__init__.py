"""What says where the interesting regions of a clip are: one file a guide, its name the kind."""
