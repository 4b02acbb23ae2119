"""The server over a runtime that says what it is told to, in a process of its own, to send signals to.

Processes need no seconds to start: they fork from one that has imported all.
"""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from offload_runtime.serve import command
from tests.fakes.served import PATIENCE
from tests.fakes.shared_runtime import SharedRuntime

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.fakes.serve_process"])


class ServeProcess:
    """A context manager. output: takes what the server prints. The process is killed if it is still there."""

    def __init__(self, output: Path, seconds: float, parallel: int, *options: str):
        self._output = output
        output.touch()
        self._process = _FORKS.Process(target=serve, args=(output, seconds, parallel, [*options, "--port", "0"]))
        self.port = 0

    def printed(self) -> str:
        """What the server has printed so far."""
        return self._output.read_text(encoding="utf-8")

    def is_ready(self) -> bool:
        """Whether the server has said where it is; then `port` is known."""
        assert self._process.exitcode is None, self.printed()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.printed())
        self.port = int(found[1]) if found else 0
        return found is not None

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def exit_code(self) -> int:
        """Wait for the end."""
        self._process.join(PATIENCE)
        code = self._process.exitcode
        assert code is not None
        return code

    def __enter__(self) -> "ServeProcess":
        self._process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()


def serve(output: Path, seconds: float, parallel: int, options: Sequence[str]) -> None:
    """Run the command in this process."""
    with output.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    # as at a terminal: test runners that were started in the background ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runtime = SharedRuntime(parallel=parallel, seconds=seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_runtime", lambda options, arguments, note: runtime)
        sys.exit(command.run(options))
