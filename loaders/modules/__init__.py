"""transformers' modules without weights, and where each tensor of theirs is bound."""
