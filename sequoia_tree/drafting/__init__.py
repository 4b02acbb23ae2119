"""Trees that adapt to the text: by priorities, or by n-gram lookup in the text."""
