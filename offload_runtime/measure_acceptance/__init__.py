"""Measure how often a draft's proposals are accepted by its target, and keep it where the runtime looks for it.

The target writes replies with the runtime itself, so that the contexts are those of real text; then one pass of each
model over every reply gives both distributions at all its tokens.
`python -m offload_runtime.measure_acceptance --help`.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from offload_runtime.start import start

    return start("offload_runtime.measure_acceptance.command", arguments)
