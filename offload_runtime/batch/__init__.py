"""Offline jobs: a file of prompts in, a file of replies out: `python -m offload_runtime.batch --help`."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from offload_runtime.start import start

    return start("offload_runtime.batch.command", arguments)
