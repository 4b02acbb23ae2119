"""What the comparison of offloading programs is made of."""
