"""What the sections share: where they write, what is written already, how much time is left, how work is timed."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from widen_model import wide_shape, widen

from gpu.scale import Scale, Wide
from loaders.checkpoint.random_weights import write_random_checkpoint
from offload_runtime.generation.out_of_memory import free_unused_memory
from offload_runtime.loading.models import LoadedModels, load_models
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import Preparation, prepare

Note = Callable[[str], None]


class OutOfTime(Exception):
    """A section's time is up."""


@dataclass(frozen=True)
class Budget:
    """`deadline`: by time.monotonic."""

    deadline: float

    @property
    def seconds(self) -> float:
        """What is left."""
        return self.deadline - time.monotonic()

    def need(self, seconds: float = 0.0) -> None:
        """Raise OutOfTime unless so much is left."""
        if self.seconds < seconds:
            raise OutOfTime(f"{seconds:.0f} s were needed and {max(0.0, self.seconds):.0f} s left")

    def until(self, share: float) -> "Budget":
        """The first part of what is left."""
        return Budget(self.deadline - (1 - share) * self.seconds)


@dataclass(frozen=True)
class Bench:
    """directory: for checkpoints, removed after the run."""

    scale: Scale
    device: str
    directory: Path
    note: Note

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Weights are stored in this; float32 where no GPU is, since CPUs may lack units for others."""
        return torch.bfloat16 if self.is_cuda else torch.float32

    @property
    def compute_dtype(self) -> str:
        """What models are computed in, unless a section says otherwise."""
        return str(self.dtype).removeprefix("torch.")

    def random(self, name: str, config: Mapping[str, Any], distinct_layers: int | None = None) -> Path:
        """A checkpoint of made-up weights; written once."""

        def write(directory: Path) -> None:
            write_random_checkpoint(dict(config), directory, self.dtype, distinct_layers=distinct_layers)

        return self._once(f"random-{name}-{distinct_layers or 'all'}", write)

    def target(self) -> Path:
        """The streamed model, some of whose layers stand for all."""
        return self.random(self.scale.target_name, self.scale.target, self.scale.distinct_layers)

    def widened(self, source: Path, wide: Wide) -> Path:
        """The small model at `source` in another shape; layers without effect share one on disk and in host memory."""
        shape = wide_shape(wide.shape, **wide.sizes)
        name = f"{source.name}-as-{wide.shape}-{shape.layers}"
        return self._once(name, lambda directory: widen(source, directory, shape, idle_layers=1))

    def prepare(self, model: Path, draft: Path | str | None = None, **options: Any) -> Preparation:
        """As `planning.prepare`, on this device; without a draft, no trees."""
        tree = {} if draft else {"tree": "none"}
        return prepare(Options(model=model, draft=draft, device=self.device, **{**tree, **options}))

    @contextmanager
    def loaded(self, preparation: Preparation) -> Iterator[LoadedModels]:
        """For the block, after what was loaded before has left the device."""
        free_unused_memory()
        models = load_models(preparation, None)
        try:
            yield models
        finally:
            models.close()
            free_unused_memory()

    def seconds(self, work: Callable[[], object], runs: int) -> list[float]:
        """Of each of several runs, after one that warms up; the device has done its work at their ends."""
        return [self._seconds(work) for _ in range(1 + runs)][1:]

    def _seconds(self, work: Callable[[], object]) -> float:
        wait = torch.cuda.synchronize if self.is_cuda else lambda: None
        wait()
        begin = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - begin

    def _once(self, name: str, write: Callable[[Path], object]) -> Path:
        directory = self.directory / name
        if not directory.exists():
            unfinished = directory.with_name(f"{name}.unfinished")
            self.note(f"  wrote {name} in {self._seconds(lambda: write(unfinished)):.1f} s")
            unfinished.rename(directory)
        return directory
