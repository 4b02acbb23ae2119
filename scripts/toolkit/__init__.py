"""What the commands share: options, prompts, checkpoints made for a run, measuring, and what is written."""
