"""Restores 16-bit weights from codes and rests."""
