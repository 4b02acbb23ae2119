"""Serve a model over HTTP, in OpenAI's form: `python -m offload_runtime.serve --help`."""

from functools import partial

from offload_runtime.start import start

main = partial(start, "offload_runtime.serve.command")
