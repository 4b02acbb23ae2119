"""Reads a model's structure and sizes from its config and its files' headers. Imports no torch."""
