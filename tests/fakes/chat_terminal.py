"""The scripted chat on a pseudo terminal, for tests."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE = 60  # seconds, on a machine that is busy
ROOT = Path(__file__).resolve().parents[2]


def _take_terminal() -> None:
    """Make standard input the controlling terminal: Ctrl-C typed there is then a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A chat at its prompt, whose replies take so long a step. loading: the FIFO that says how it is loaded."""

    def __init__(
        self,
        seconds_per_step: float = 0.0,
        columns: int = 80,
        state: Path | None = None,
        loading: Path | None = None,
        options: Sequence[str] = (),
    ):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        kept = {} if state is None else {"SEQUOIA_OFFLOAD_STATE": str(state)}
        kept |= {} if loading is None else {"SCRIPTED_LOADING": str(loading)}
        environment = {**os.environ, **kept, "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tests.fakes.scripted_runtime", str(seconds_per_step), *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        self.descriptor = self._master
        os.close(slave)
        self.output = ""

    @property
    def process(self) -> int:
        return self._process.pid

    def expect(self, text: str, seconds: float = PATIENCE) -> str:
        """Read until `text` comes; return what came before it."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self._read(deadline), self.output
        before, _, self.output = self.output.partition(text)
        return before

    def send(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def press_until_it_ends(self, keys: str) -> None:
        """Between two prompts the terminal drops what is typed: press again after a while, as a person does."""
        for _ in range(3):
            self.send(keys)
            patience = time.monotonic() + PATIENCE / 4
            while self._read(patience):
                pass
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
                return
            self.send(keys)  # the first press is answered, the second leaves

    def exit_code(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self._process.wait(timeout=max(0, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Read some more; False when the time is up or the other side is closed, which Linux says by an error."""
        if not select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            self.output += os.read(self._master, 4096).decode(errors="replace")
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
