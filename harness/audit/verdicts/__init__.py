"""What findings mean: a file a layer."""
