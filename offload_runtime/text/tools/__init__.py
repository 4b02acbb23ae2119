"""Tools: their definitions in a prompt, and the calls that a model writes."""
