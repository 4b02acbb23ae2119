"""What this machine is, how fast it is, and what models it is predicted to run: `python -m offload_runtime.doctor`.

For people who report a fault, and for the first hour with a GPU. Needs no model and no GPU; names no person and no
place.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from offload_runtime.start import start

    return start("offload_runtime.doctor.command", arguments)
