"""Chooses the fastest tree: its method, size and depth, or none."""
