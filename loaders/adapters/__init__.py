"""LoRA adapters: what their files say, and how they are merged into the weights while these are read."""
