"""What the measurement of acceptance is made of."""
