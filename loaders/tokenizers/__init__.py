"""Tokenizers from a model's files, and their vocabularies."""
