"""What embeds a small Llama in a large one is made of."""
