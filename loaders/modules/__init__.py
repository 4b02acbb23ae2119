"""transformers' modules without weights, and where each of their tensors is bound."""
