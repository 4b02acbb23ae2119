"""Quantizing a 16-bit checkpoint into a new directory."""
