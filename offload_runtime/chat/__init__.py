"""Chat with a model that is larger than the device's memory: `python -m offload_runtime.chat --help`."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from offload_runtime.start import start

    return start("offload_runtime.chat.command", arguments)
