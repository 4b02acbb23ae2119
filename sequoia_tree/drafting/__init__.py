"""Which nodes a tree gets that fits the text: by priorities, or by what the text said before."""
