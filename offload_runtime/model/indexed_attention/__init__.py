"""Indexers that select blocks of rows: each node of a tree selects along its own path."""
