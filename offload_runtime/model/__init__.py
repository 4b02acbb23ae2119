"""One model: its resident or streamed layers, tree attention, and KV cache."""
