"""What a terminal needs: the screen, the keyboard, Ctrl-C, what was typed before."""
