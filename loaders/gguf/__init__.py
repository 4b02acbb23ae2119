"""GGUF files: header, config, names, and the checkpoint they make up. dequantize/ggml/ dequantizes their blocks."""
