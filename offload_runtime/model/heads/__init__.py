"""Draft heads: the target's hidden states that they read, kept for each text, and passes of the head itself."""
