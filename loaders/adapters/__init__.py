"""LoRA adapters: reading their files, and merging them into the weights at load."""
