"""The chat's terminal: screen, keyboard, Ctrl-C, history."""
