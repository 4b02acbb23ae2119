"""A model that also runs with a low-bit copy of its streamed layers: its own draft, over its own KV rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loaders.dequantize.stacks import decode_stack
from loaders.modules.experts import Experts
from loaders.modules.skeleton import Skeleton, UnitLayout, make_parameters
from loaders.quantize.interrupts import interrupts_deferred
from offload_runtime.model.attention import attending
from offload_runtime.model.low_bits.copies import LowBitCopies
from offload_runtime.model.model import Model, ModelPlacement
from offload_runtime.model.padded_passes import Runner, padded_passes
from offload_runtime.model.rows import PassRows, SharedRows
from scheduler.plan.padding import Padding
from scheduler.plan.placement import Tier

Rows = PassRows | SharedRows
Hook = Callable[[nn.Module, Any], None]


class SelfDraftingModel(Model):
    """While `drafting`, passes run the copy: streamed layers in `bits` bits, resident ones as they are.

    The copy is made by streaming all layers once. The rows that drafting writes are as uncommitted as those of any
    pass; the arguments after `bits` are those of `Model`.
    """

    def __init__(self, bits: int, skeleton: Skeleton, checkpoint: Any, placement: ModelPlacement, *args: Any):
        self._drafting = False
        super().__init__(skeleton, checkpoint, placement, *args)
        streamed = {
            number: layer
            for number, (layer, tier) in enumerate(zip(skeleton.layers, placement.tiers))
            if tier is not Tier.DEVICE
        }
        try:
            self._copies = LowBitCopies(streamed, bits, self._memory)
            self._copy(streamed)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Within the block, passes run the copy."""
        self._drafting = True
        try:
            yield
        finally:
            self._drafting = self._runs_copy = False

    @torch.inference_mode()
    def forward(self, tokens: Tensor, rows: Rows, logits_to_keep: int | Tensor) -> Tensor:
        """A pass as of any model; of the copy, nothing crosses the link."""
        if not self._drafting:
            return super().forward(tokens, rows, logits_to_keep)
        self._lengths.begin_pass(min(rows.keys, self._last_position + 1))
        logits = self._padded_logits(tokens, rows, logits_to_keep)
        if logits is not None:
            self.cache.advance_texts(rows)
            return logits
        self._runs_copy = False  # a pass that turned out not to be replayable may have ended within a layer
        with attending(rows), self.cache.one_pass(rows):
            return self._compute(tokens, rows.row_positions, logits_to_keep)

    def pad_passes(self, padding: Padding, run: Runner) -> None:
        """As of any model; where layers stream, only of the copy, which lies at one place in all passes."""
        self._padded = padded_passes(self._compute_padded, self.cache, self.device, padding, run)

    def _padded_logits(self, tokens: Tensor, rows: Rows, logits_to_keep: int | Tensor) -> Tensor | None:
        streams = self._weights.ring is not None and not self._drafting
        return None if streams else super()._padded_logits(tokens, rows, logits_to_keep)

    def _copy(self, layers: dict[int, UnitLayout]) -> None:
        """Stream these layers once, and copy each; weights whose code is here are only checked."""
        ring = self._weights.ring
        if ring is None:
            return
        self._weights.stream_experts(only_routed=False)
        ring.rewind()
        with interrupts_deferred() as check_interrupts:
            for number, layer in layers.items():
                slot = ring.slots[self._weights.acquire(number)][: layer.layout.nbytes]
                self._copies.fill(number, self._plain_tensors(number, layer, slot))
                ring.release()
                check_interrupts()

    def _plain_tensors(self, number: int, layer: UnitLayout, slot: Tensor) -> dict[str, Tensor]:
        """The tensors of a layer in the compute dtype, dequantized where they are quantized and no code is here."""
        given = layer.layout.views(slot)
        if layer.decoded is None:
            return given
        layer.bind(make_parameters(layer.layout, slot))
        self._pairs.check(parameter.packed for parameter in layer.packed.values())
        views = self._copies.views(number)
        for name, view in views.items():
            if layer.code and name in layer.code.packed:
                continue
            if name in layer.packed:
                packed = layer.packed[name].packed
                decode_stack(packed, packed.view(view.view(-1)))
            else:
                view.copy_(given[name])
        return views

    def _begin_layer(self, module: nn.Module, args: Any) -> None:
        if not self._drafting:
            super()._begin_layer(module, args)
        elif not self._in_one_piece:
            self._poll()

    def _bind_next(self, index: int, layer: UnitLayout, slots: list[tuple[nn.Parameter, ...]]) -> Hook:
        bind_streamed = super()._bind_next(index, layer, slots)

        def hook(module: nn.Module, args: Any) -> None:
            if self._drafting:
                self._copies.bind(index)
                self._runs_copy = True
            else:
                bind_streamed(module, args)

        return hook

    def _fetch_experts(self, experts: Experts) -> Callable[[nn.Module, Any, Any], None]:
        fetch = super()._fetch_experts(experts)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._drafting:
                fetch(module, args, kwargs)

        return hook

    def _release(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._drafting:
            self._runs_copy = False
        else:
            super()._release(module, args, output)
