"""Safetensors: headers, where tensors lie in shards, and writing them. No weights are read here, no torch."""
