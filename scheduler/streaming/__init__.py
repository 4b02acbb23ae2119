"""Brings layers to the device, ahead of their use.

layer_memory.py holds each layer's bytes in its tier and fills the slots of ring.py from them; link.py copies from host
memory to the device, read_ahead.py reads ahead of the ring from disk.
"""
