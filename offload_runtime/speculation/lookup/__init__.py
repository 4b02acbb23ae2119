"""Drafting by looking up what followed before where the text repeats itself."""
