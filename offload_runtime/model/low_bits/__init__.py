"""A low-bit copy of the target's layers, which runs through the target's own modules and KV rows."""
