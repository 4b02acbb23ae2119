"""Packed weights decoded just before use."""
