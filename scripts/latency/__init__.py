"""What the latency benchmark measures, and the timeline it draws."""
