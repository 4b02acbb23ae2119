"""GGUF files: header, config, names, and the checkpoint they make up."""
