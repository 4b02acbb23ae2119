"""From logits to distributions, and from distributions to the accepted path."""
