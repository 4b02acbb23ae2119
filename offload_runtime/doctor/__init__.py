"""What this machine is, how fast it is, and what models it is predicted to run: `python -m offload_runtime.doctor`.

For bug reports, and for the first hour with a GPU. Needs no model and no GPU; the output names no user, host or path.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from offload_runtime.start import start

    return start("offload_runtime.doctor.command", arguments)
