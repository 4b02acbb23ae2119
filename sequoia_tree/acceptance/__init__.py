"""How often a draft's proposals are accepted: observed, summed, estimated."""
