"""The user's options, and how a command reads them. Imports no torch."""
