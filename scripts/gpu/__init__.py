"""What the measurements on a GPU are made of: one module per section."""
