"""A causal language model whose layers are resident or streamed, over a tree-aware KV cache.

transformers' modelling code runs unchanged. The weights reach it in forward pre-hooks: a streamed layer's parameters
are bound, just before it runs, to views of the ring slot that holds its bytes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from loaders.layout import Layout
from loaders.reader import WeightReader
from loaders.safetensors_files import Checkpoint
from loaders.skeleton import Skeleton, Unit, make_parameters
from loaders.sources import map_sources
from offload_runtime.attention import PassRows, attending
from offload_runtime.errors import Interrupted
from offload_runtime.kv_cache import TreeCache
from offload_runtime.rows import text_rows
from scheduler.device_memory import DeviceMemory
from scheduler.plan import Tier
from scheduler.unit_memory import Progress, UnitBytes, UnitMemory

Parameters = tuple[nn.Parameter, ...]


def never() -> bool:
    """The default answer to "should I stop?"."""
    return False


class Model:
    """Loads its weights on construction; `forward` then runs passes over `cache`.

    tiers: where each decoder layer lives; embeddings, final norm and head are always resident.
    slots: ring slots for the layers that stream.
    capacity: rows of the KV cache, committed and in progress together.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        checkpoint: Checkpoint,
        tiers: tuple[Tier, ...],
        slots: int,
        capacity: int,
        reader: WeightReader,
        memory: DeviceMemory,
        on_progress: Progress | None = None,
    ):
        self._model, self._memory = skeleton.model, memory
        self.should_stop: Callable[[], bool] = never
        self.device = memory.device
        self.config = skeleton.config
        self.vocab_size: int = skeleton.config.vocab_size
        self._last_position: int = getattr(skeleton.config, "max_position_embeddings", None) or capacity
        self.cache = TreeCache(skeleton.config, capacity, memory.add)
        self._cache_argument = _cache_argument(skeleton.model)
        units = (*skeleton.units, skeleton.outer)
        sources, outer_source = map_sources(skeleton, checkpoint)
        unit_bytes = [UnitBytes(unit.layout.nbytes, source) for unit, source in zip(units, (*sources, outer_source))]
        self._weights = UnitMemory(unit_bytes, (*tiers, Tier.DEVICE), slots, reader, memory, on_progress)
        for index, buffer in self._weights.resident.items():
            units[index].bind(make_parameters(units[index].layout, buffer))
        self._add_hooks(skeleton.units)
        self.streamed_total = 0

    @property
    def streamed_bytes(self) -> int:
        """Bytes that cross the link in every pass."""
        return self._weights.streamed_bytes

    @property
    def seconds_streaming(self) -> float:
        """Seconds in which the link was busy, summed since loading."""
        return self._weights.seconds_streaming

    @torch.inference_mode()
    def forward(self, tokens: Tensor, rows: PassRows, logits_to_keep: int) -> Tensor:
        """Run ``tokens [n]`` as the given rows, behind what the cache holds.

        Returns float logits ``[logits_to_keep, vocab]`` of the last rows. The new cache rows stay uncommitted.
        Raises Interrupted between two layers when `should_stop` says so.
        """
        assert tokens.shape == rows.row_positions.shape and 1 <= logits_to_keep <= len(tokens)
        if self._weights.ring:
            self._weights.ring.rewind()
        with attending(rows), self.cache.one_pass():
            output = self._model(
                input_ids=tokens[None],
                # rows past the last position can never be accepted, but a table of learned positions must not overflow
                position_ids=rows.row_positions.clamp(max=self._last_position - 1)[None],
                use_cache=True,
                logits_to_keep=logits_to_keep,
                **{self._cache_argument: self.cache},
            )
        self.cache.advance(len(tokens))
        self.streamed_total += self.streamed_bytes
        return output.logits[0]

    def read(self, tokens: Sequence[int], most_rows: int) -> Tensor:
        """Append text to the cache, at most `most_rows` tokens a pass; logits ``[1, vocab]`` after its end.

        Every finished pass is committed: the rows stay right whatever happens to the next.
        """
        assert tokens
        for begin in range(0, len(tokens), most_rows):
            piece = torch.tensor(tokens[begin : begin + most_rows], device=self.device)
            logits = self.forward(piece, text_rows(self.cache.length, len(piece), self.device), logits_to_keep=1)
            self.cache.commit(range(len(piece)))
        return logits

    def without_streaming(self) -> AbstractContextManager[None]:
        """For the block, streamed layers compute on bytes of other layers: passes take the time of computing alone."""
        return self._weights.ring.paused() if self._weights.ring else nullcontext()

    def close(self) -> None:
        """Stop streaming."""
        self._weights.close()

    def _add_hooks(self, units: tuple[Unit, ...]) -> None:
        ring = self._weights.ring
        shared: dict[tuple[int, Layout], Parameters] = {}
        for index, unit in enumerate(units):
            unit.module.register_forward_pre_hook(self._poll)
            if index in self._weights.resident:
                continue
            assert ring is not None
            slots = []
            for slot, buffer in enumerate(ring.slots):
                key = (slot, unit.layout)
                if key not in shared:
                    shared[key] = make_parameters(unit.layout, buffer[: unit.layout.nbytes])
                slots.append(shared[key])
            unit.module.register_forward_pre_hook(self._bind_next(index, unit, slots))
            unit.module.register_forward_hook(self._release)

    def _poll(self, module: nn.Module, args: Any) -> None:
        if self.should_stop():
            raise Interrupted

    def _bind_next(self, index: int, unit: Unit, slots: list[Parameters]) -> Callable[[nn.Module, Any], None]:
        ring = self._weights.ring
        assert ring is not None

        def hook(module: nn.Module, args: Any) -> None:
            unit.bind(slots[ring.acquire(index)])

        return hook

    def _release(self, module: nn.Module, args: Any, output: Any) -> None:
        assert self._weights.ring is not None
        self._weights.ring.release()


def _cache_argument(model: nn.Module) -> str:
    """Pure state-space models have a name of their own for the cache."""
    return "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"
