"""Reads a model's files: its size, its layouts, its weights into buffers. Importing this package imports no torch."""

__project__ = "sequoia-offload"  # `offload_runtime.start` tells this package by it from others of the same name
