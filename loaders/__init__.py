"""From the files of a model to its size, its layouts and filled buffers. Importing this package imports no torch."""
