"""Reading weights from disk into buffers."""
