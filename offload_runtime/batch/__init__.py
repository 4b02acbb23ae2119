"""Offline jobs: a file of prompts in, a file of replies out: `python -m offload_runtime.batch --help`."""

from functools import partial

from offload_runtime.start import start

main = partial(start, "offload_runtime.batch.command")
