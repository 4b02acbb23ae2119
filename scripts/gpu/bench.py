"""What the sections share: where they write, what is written already, how much time is left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


@dataclass
class Bench:
    """directory: for checkpoints, removed after the run. written: bytes and seconds of writing them."""

    scale: Scale
    device: str
    directory: Path
    note: Note
    written: list[tuple[int, float]] = field(default_factory=list)

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

    def prepare_target(self, draft: Path | None = None, **options: Any) -> Preparation:
        """A plan for it."""
        shared = self.scale.distinct_layers < self.scale.target["num_hidden_layers"]
        return self.prepare(self.target(), draft, share_layers=shared, **options)

    def widened(self, source: Path, wide: Wide) -> Path:
        """The small model at `source` in another shape; layers without effect share one on disk and in host memory."""
        shape = wide_shape(wide.shape, **wide.sizes)
        return self._once(
            f"{source.name}-as-{wide.shape}-{shape.layers}",
            lambda directory: widen(source, directory, shape, idle_layers=1),
        )

    def prepare(self, model: Path, draft: Path | str | None = None, **options: Any) -> Preparation:
        """As `planning.prepare`, on this device."""
        return prepare(Options(model=model, draft=draft, device=self.device, **options))

    def load(self, preparation: Preparation) -> LoadedModels:
        """After what was loaded before has left the device."""
        self.free()
        return load_models(preparation, None)

    def free(self) -> None:
        """Give back what nothing holds any more."""
        free_unused_memory()

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    @property
    def write_rate(self) -> float:
        """Bytes per second of writing checkpoints so far; a slow disk's before anything was written."""
        nbytes, seconds = (sum(column) for column in zip(*self.written)) if self.written else (0, 0)
        return nbytes / seconds if seconds else 5e8

    def _once(self, name: str, write: Callable[[Path], object]) -> Path:
        directory = self.directory / name
        if not directory.exists():
            begin = time.perf_counter()
            unfinished = directory.with_name(f"{name}.unfinished")
            write(unfinished)
            nbytes = sum(file.stat().st_size for file in unfinished.iterdir())
            self.written.append((nbytes, time.perf_counter() - begin))
            self.note(f"  wrote {nbytes / 1e9:.2f} GB of {name} in {self.written[-1][1]:.1f} s")
            unfinished.rename(directory)
        return directory
