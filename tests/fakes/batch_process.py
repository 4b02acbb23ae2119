"""Runs jobs in processes of their own that need no seconds to start: they fork from one that has imported all.

python -m tests.fakes.batch_process reads lines of JSON: a job's arguments, and when to send it which signal. It prints
the exit status of each.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Signal:
    """A signal for a job: so many seconds after `file` has a size, or after its start if that is 0."""

    number: int = signal.SIGKILL
    seconds: float = 0.0
    size: int = 0
    file: str = ""


class BatchProcesses:
    """A context manager that runs jobs. errors: takes what they print."""

    def __init__(self, errors: Path):
        self.errors = errors
        with errors.open("wb") as file:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.batch_process"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def run(self, arguments: Sequence[str], to_send: Signal | None = None) -> int:
        """The exit code of a job; negative: the signal that ended it."""
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps([arguments, asdict(to_send) if to_send else None]) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def __enter__(self) -> "BatchProcesses":
        return self

    def __exit__(self, *exception: object) -> None:
        self._parent.communicate()  # which closes its input


def serve() -> None:
    """Fork for each line of the input."""
    import offload_runtime.batch.command
    import offload_runtime.generation.runtime  # what takes seconds; it starts no threads

    for line in sys.stdin:
        arguments, to_send = json.loads(line)
        child = os.fork()
        if not child:
            code = offload_runtime.batch.command.run(arguments)
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(_watched(child, to_send and Signal(**to_send))), flush=True)


def _watched(child: int, to_send: Signal | None) -> int:
    """The status that a child ends with. Its number is its own until it is waited for, so the signal comes before."""
    since = time.monotonic()
    while to_send is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        file = Path(to_send.file)
        if to_send.size and not (file.exists() and file.stat().st_size >= to_send.size):
            since = time.monotonic()
        elif time.monotonic() - since >= to_send.seconds:
            os.kill(child, to_send.number)
            break
        time.sleep(0.001)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    serve()
