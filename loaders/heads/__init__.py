"""Draft heads in files of their own: EAGLE-3 and DFlash, which read hidden states of the target beside its tokens."""
