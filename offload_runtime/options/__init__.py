"""What a user may ask for, and how a command reads it. Imports no torch."""
