"""The rows of the KV cache, layer by layer: on the device, or in host memory."""
