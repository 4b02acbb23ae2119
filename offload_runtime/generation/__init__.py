"""Generates: the facade (runtime.py), the decode loop (decode.py), and the texts that share passes."""
