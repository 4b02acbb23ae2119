"""Runs the lines of a job on several machines with Ray Data: a runtime for each GPU. Ray is an optional dependency."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.hub.names import hub_name
from loaders.message_text import first_line
from offload_runtime.batch.answers import Answer, LineRunner
from offload_runtime.batch.input_file import InputLine
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.options.fields import values_of
from offload_runtime.options.run_options import Options, RunOptions

if TYPE_CHECKING:
    import pyarrow

LOCAL = "local"
_MOST_LINES = 64  # handed to a worker at once: eight for each of the texts that the planner writes side by side at most
_SHARES = 4  # of a worker, so that a fast one does more
_REACH_SECONDS = 10
_TICK = 0.2  # seconds between two looks at whether to stop


@dataclass
class RayWorkers:
    """Answers lines on a cluster; a context manager. workers: None for one on each GPU, or on each machine without."""

    address: str
    workers: int | None
    options: Options
    forms: Forms

    def __enter__(self) -> "RayWorkers":
        self._ray = _imported()
        local = {"include_dashboard": False} if self.address == LOCAL else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
        try:
            _check_reachable(self.address)
            self._ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"--ray {self.address}: cannot be used ({first_line(error)}).\n"
                "  ray start --head                 starts a cluster, and says how other machines join it\n"
                "  --ray auto, or --ray HOST:6379   uses it\n"
                f"  --ray {LOCAL}                      uses this machine alone"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()

    def answers(
        self, lines: Iterable[InputLine], should_stop: Callable[[], bool], on_pass: Callable[[int], None]
    ) -> Iterator[Answer]:
        """The answers in the order in which they come. Raises OffloadError where a worker cannot go on."""
        rows: queue.Queue[Mapping[str, Any] | OffloadError | None] = queue.Queue()
        # Ray's own waiting does not end when it is asked to stop
        threading.Thread(target=self._collect, args=([*lines], rows), name="answers", daemon=True).start()
        while not should_stop():
            try:
                row = rows.get(timeout=_TICK)
            except queue.Empty:
                continue
            if row is None:
                return
            if isinstance(row, OffloadError):
                raise row
            on_pass(row["tokens"])
            yield Answer(**row)

    def _collect(self, lines: list[InputLine], rows: queue.Queue[Any]) -> None:
        """Put rows of answers, then None; an error in place of what is missing."""
        try:
            for row in self._rows(lines):
                rows.put(OffloadError(row["fault"]) if row.get("fault") else row["answer"])
            rows.put(None)
        except Exception as error:  # of any kind: what Ray and its workers raise
            rows.put(OffloadError(f"--ray {self.address}: {first_line(error)}"))

    def _rows(self, lines: list[InputLine]) -> Iterator[Any]:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # bytes: each answer comes as soon as it is there
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = self._ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        workers = min(self.workers or gpus or len(self._ray.nodes()), len(lines))
        size = min(_MOST_LINES, -(-len(lines) // (_SHARES * workers)))
        items = ray.data.from_items([asdict(line) for line in lines], override_num_blocks=-(-len(lines) // size))
        answered = items.map_batches(
            _Worker,
            batch_size=size,
            batch_format="pyarrow",
            concurrency=workers,
            fn_constructor_args=(_for_others(self.options), self.forms),
            num_gpus=1 if gpus else None,
            num_cpus=None if gpus else 1,
        )
        return iter(answered.iter_rows())


class _Worker:
    """An actor with one runtime, which it loads when its first lines come: a fault there is reported like others."""

    def __init__(self, options: RunOptions, forms: Forms):
        self._options, self._forms = options, forms
        self._runner: LineRunner | None = None

    def __call__(self, batch: "pyarrow.Table") -> "Iterator[pyarrow.Table]":
        import pyarrow

        try:
            runner = self._runner = self._runner or self._load()
            for answer in runner.answers(InputLine(**row) for row in batch.to_pylist()):
                yield pyarrow.Table.from_pylist([{"answer": asdict(answer), "fault": None}])
        except OffloadError as error:
            yield pyarrow.Table.from_pylist([{"answer": None, "fault": str(error)}])

    def _load(self) -> LineRunner:
        from offload_runtime import OffloadRuntime

        runtime = OffloadRuntime.from_pretrained(**values_of(RunOptions, self._options))
        return LineRunner(runtime, self._forms, lambda: False)


def _imported() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"--ray needs Ray ({error}).\n  pip install 'sequoia-offload[ray]'") from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()


def _for_others(options: Options) -> RunOptions:
    """The options with names and paths that mean the same in other processes."""
    values = values_of(RunOptions, options)
    for name, value in values.items():
        if isinstance(value, Path):
            is_name = name in ("model", "draft") and hub_name(value)
            values[name] = str(value) if is_name else value.absolute()
    return RunOptions(**values)
