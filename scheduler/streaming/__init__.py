"""Bringing layers to the device, ahead of their use."""
