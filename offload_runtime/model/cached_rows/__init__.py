"""The rows of the KV cache, layer by layer: as computed or in 8 bits (forms.py), on the device or in host memory."""
