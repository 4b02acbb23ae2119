"""One model: its layers, resident or streamed, its attention along a tree, its KV cache."""
