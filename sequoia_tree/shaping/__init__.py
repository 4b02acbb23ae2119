"""What shapes logits before a token is drawn: rules that see the scores of some nodes and the tokens before each.

Names, meaning and order are those of transformers' logits processors, so that text is the one `generate` would write.
"""
