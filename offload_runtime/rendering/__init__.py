"""Chat templates: programs that come with a model, run with a limit of time, memory and output."""
