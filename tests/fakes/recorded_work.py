"""A CUDA graph's replay on a CPU: the first time, work is done and every operation is written down; from then on the
same operations run again over the same memory, with the very numbers of the first time. No Python of the work runs.

So a number of one pass that the host baked into the work shows, as it would on a GPU.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from offload_runtime.model.host_reads import HostRead, no_host_reads
from offload_runtime.model.padded_passes import NotReplayable, PassSize


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        held = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        fresh = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        fresh = [x for x in fresh if x.untyped_storage().data_ptr() not in held]
        if fresh or function._schema.is_mutable:  # else a view of memory that stays where it is
            self.steps.append((function, args, kwargs, fresh))
        return out


class RecordedWork:
    """The runner. replays: how often work was not run but repeated. shapes: those recorded."""

    def __init__(self) -> None:
        self._steps: dict[PassSize, list[tuple[Any, tuple, dict, list[Tensor]]]] = {}
        self.replays = 0

    @property
    def shapes(self) -> set[PassSize]:
        return set(self._steps)

    def __call__(self, shape: PassSize, work: Callable[[], None]) -> None:
        if shape not in self._steps:
            try:
                with no_host_reads():
                    work()
            except HostRead as error:
                raise NotReplayable(str(error)) from error
            with _Recording() as recording:
                work()
            self._steps[shape] = recording.steps
            return
        self.replays += 1
        for function, args, kwargs, memory in self._steps[shape]:
            out = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(memory, out[len(out) - len(memory) :], strict=True):
                old.copy_(new)
