"""What the comparison of methods is made of."""
