"""From the files of a model to its size, its layouts and filled buffers. Importing this package imports no torch."""

__project__ = "sequoia-offload"  # by this `offload_runtime.start` knows it from others of its name
