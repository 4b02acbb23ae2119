"""Which tree pays: its method, size and depth, or none."""
