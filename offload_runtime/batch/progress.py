"""How far a job is, on stderr: one line that changes on a terminal, else a line every half minute."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from offload_runtime.chat.status import duration

LINE_SECONDS = 30.0  # between two lines where there is no terminal
_BAR = 20  # columns


class JobProgress:
    """A context manager; `wrote` and `answered` say what happened. total: lines; done, failed: of earlier runs.

    stopping: whether the job is about to end.
    """

    def __init__(
        self,
        total: int,
        done: int,
        failed: int,
        quiet: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.tokens = 0
        self.failed = failed
        self._total, self._done, self._begun_with = total, done, done
        self._stopping, self._clock = stopping, clock
        self._started = self._said_at = clock()
        console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._console = console
        self._says_lines = not quiet and not console.is_terminal
        columns = (BarColumn(bar_width=_BAR), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)
        self._task = self._bar.add_task(self.text(), total=total, completed=done)

    @property
    def seconds(self) -> float:
        """Since the first pass of this run could begin."""
        return self._clock() - self._started

    def wrote(self, tokens: int) -> None:
        """Count the tokens of a pass."""
        self.tokens += tokens
        self._show()

    def answered(self, failed: bool) -> None:
        """Count an answered line."""
        self._done += 1
        self.failed += failed
        self._show()

    def text(self) -> str:
        """How far the job is, how fast, and how long it takes."""
        parts = [f"{self._done} of {self._total} lines ({self._done / self._total:.0%})"]
        if self.failed:
            parts.append(f"{self.failed} error{'s' * (self.failed != 1)}")
        if self.tokens:
            parts.append(f"{self.tokens / max(self.seconds, 1e-9):.2g} tok/s")
        left = self._seconds_left()
        if self._stopping():
            parts.append("stopping")
        elif left is not None:
            parts.append(f"about {duration(left)} left")
        return " · ".join(parts)

    def _seconds_left(self) -> float | None:
        """At the pace of this run, which begins with texts that are far from finished; None before the first one.

        Tokens written, divided by finished texts, are the likeliest mean length where the others are still growing;
        with it the tokens cancel.
        """
        now = self._done - self._begun_with
        return self.seconds / now * (self._total - self._done) if now and self._done < self._total else None

    def __enter__(self) -> "JobProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _show(self) -> None:
        if not self._says_lines:
            self._bar.update(self._task, description=self.text(), completed=self._done)
        elif self._clock() - self._said_at >= LINE_SECONDS:
            self._said_at = self._clock()
            self._console.print(self.text())
