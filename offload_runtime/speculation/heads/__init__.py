"""Drafting with a head, which reads hidden states of the target beside its tokens."""
