"""Tokenizers from a model's files, and what they call their tokens."""
