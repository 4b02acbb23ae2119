"""What the latency benchmark is made of."""
