"""Safetensors files: reading headers, laying tensors out in shards, writing. Reads no weights."""
