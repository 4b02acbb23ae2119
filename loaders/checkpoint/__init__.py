"""What a model is and how large, from its config and its files' headers. Imports no torch."""
