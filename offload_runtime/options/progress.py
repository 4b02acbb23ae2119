"""Progress bars for loading: one line per stage with bytes, rate and time left."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class _Rate(TransferSpeedColumn):
    """The rate; empty, not a question mark, if it is not known."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.finished_speed or task.speed else Text()


class LoadingBar:
    """A context manager to call with (stage, bytes done, bytes in all); silent without a terminal."""

    def __init__(self, console: Console, quiet: bool = False):
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total_bytes)
        self._bars.update(self._tasks[stage], completed=done_bytes, total=total_bytes)

    def __enter__(self) -> "LoadingBar":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()
