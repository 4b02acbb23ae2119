"""Chat with a model that is larger than the device's memory: `python -m offload_runtime.chat --help`."""

from functools import partial

from offload_runtime.start import start

main = partial(start, "offload_runtime.chat.command")
