"""ggml's blocks, the kinds that GGUF files store weights in: in plain torch, and for Triton."""
