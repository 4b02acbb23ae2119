"""The architectures of GGUF files: each one's config, names, and what its converter does to tensors."""
