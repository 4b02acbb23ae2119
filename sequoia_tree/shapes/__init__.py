"""Which nodes a static tree has, and pictures of it."""
