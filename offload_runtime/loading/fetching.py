"""Downloads missing models: shows the plan, asks before a large download, and shows progress."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loaders.hub.model import HubModel
from loaders.progress import StageProgress
from loaders.sizes import format_size
from offload_runtime.errors import DoesNotFitError, UsageError
from offload_runtime.options.run_options import Options, located
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.plan.table import format_plan

ASK_ABOVE = 5_000_000_000  # bytes


@dataclass(frozen=True)
class Download:
    """The missing files of one or two models; `models` is empty if there is nothing to download."""

    models: tuple[HubModel, ...]

    @classmethod
    def of(cls, options: Options) -> "Download":
        """The missing files for `located` options."""
        return cls(tuple(source for source in options.sources if source.missing))

    @property
    def nbytes(self) -> int:
        """Bytes of all missing files; files that were begun count in full."""
        return sum(model.missing_bytes for model in self.models)

    @property
    def begun_bytes(self) -> int:
        """Bytes of these files that an earlier start has downloaded."""
        from loaders.hub.download import begun_bytes

        return sum(map(begun_bytes, self.models))

    @property
    def place(self) -> Path:
        """The cache directory of huggingface_hub."""
        return self.models[0].directory.parents[2]

    @property
    def free(self) -> int:
        return shutil.disk_usage(next(one for one in (self.place, *self.place.parents) if one.exists())).free

    def __str__(self) -> str:
        names = " and ".join(str(model.name) for model in self.models)
        begun = self.begun_bytes
        there = f", of which {format_size(begun)} are there," if begun else ""
        return f"{format_size(self.nbytes)} of {names}{there} into {self.place} ({format_size(self.free)} free)"

    def check_disk(self) -> None:
        """Raise DoesNotFitError unless the disk has room for what is still missing."""
        needed, free = self.nbytes - self.begun_bytes, self.free
        if needed <= free:
            return
        raise DoesNotFitError(
            f"not enough room for the download: {format_size(needed)} are needed in {self.place}, "
            f"{format_size(free)} are free.\n"
            "  hf cache ls   shows what can be removed with hf cache rm\n"
            "  HF_HOME=DIR   before the command: downloads go to another disk",
            needed,
            free,
            (),
        )

    def run(self, progress: StageProgress | None = None) -> None:
        """Download everything. If it raises ModelFilesError, the next start continues from what is there."""
        from loaders.hub.download import download

        self.check_disk()
        for model in self.models:
            download(model, _Count(f"downloading {model.label}", model.missing_bytes, progress).add)


@dataclass
class _Count:
    """Adds up the bytes of one model."""

    stage: str
    total: int
    progress: StageProgress | None
    done: int = 0

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress:
            self.progress(self.stage, self.done, self.total)


def fetched(
    options: Options,
    yes: bool,
    quiet: bool,
    describe: Callable[[Preparation], str] | None = None,
) -> Options:
    """The options of a command, with all files of their models on disk.

    Before a download, the plan is made from the models' headers and shown unless `quiet`, formatted by `describe` or as
    a table. For more than ASK_ABOVE bytes, the user is asked on the terminal, unless `yes`. Raises UsageError if nobody
    can be asked or the answer is no, and what `prepare` and `Download.run` raise.
    """
    options = located(options)
    download = Download.of(options)
    if not download.models:
        return options
    preparation = prepare(options)  # rejects models that cannot run before they are downloaded
    if not quiet:
        text = describe(preparation) if describe else format_plan(preparation.plan)
        print(text, file=sys.stderr, flush=True)
    download.check_disk()
    if download.nbytes > ASK_ABOVE and not yes:
        _ask(download)
    elif not quiet:
        print(f"downloading {download}", file=sys.stderr, flush=True)
    from rich.console import Console

    from offload_runtime.options.progress import LoadingBar

    try:
        with LoadingBar(Console(stderr=True), quiet) as progress:
            download.run(progress)
    except KeyboardInterrupt:
        if not quiet:
            print("what was downloaded is kept: the same command goes on from there", file=sys.stderr, flush=True)
        raise
    return options


def _ask(download: Download) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"this would download {download}, and nobody can be asked whether it may.\n"
            "  --yes    downloads it\n"
            "  --plan   shows what it would need to run, and downloads no weights"
        )
    sys.stderr.write(f"download {download}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was downloaded")
