"""Serve a model over HTTP, in OpenAI's form: `python -m offload_runtime.serve --help`."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from offload_runtime.start import start

    return start("offload_runtime.serve.command", arguments)
