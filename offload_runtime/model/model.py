"""A causal language model whose layers are resident or streamed, over a tree-aware KV cache.

transformers' modelling code runs unchanged. The weights reach it in forward pre-hooks: a streamed layer's parameters
are bound, just before it runs, to views of the ring slot that holds its bytes.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loaders.checkpoint.recurrent import can_branch
from loaders.dequantize.at_load import decode_layer, fill_decoded
from loaders.dequantize.hooks import decode_before_use, scratch_bytes
from loaders.dequantize.lossless.pairs import UncheckedPairs
from loaders.io.reader import WeightReader
from loaders.io.row_reader import RowReader
from loaders.modules.experts import Experts, choice_among, position_of_choice, routed_among
from loaders.modules.layout import Layout
from loaders.modules.quantized import Packed
from loaders.modules.row_tables import RowTable
from loaders.modules.skeleton import Skeleton, UnitLayout, make_parameters
from loaders.progress import ByteProgress
from loaders.quantize.interrupts import interrupts_deferred
from loaders.safetensors_files.headers import Checkpoint
from offload_runtime.errors import Interrupted
from offload_runtime.model.attention import attending
from offload_runtime.model.indexed_attention.adapted import follow_rows
from offload_runtime.model.kv_cache import TreeCache, cache_argument
from offload_runtime.model.length_rotations import TextLengths
from offload_runtime.model.linear_attention.wrappers import let_branch
from offload_runtime.model.model_placement import ModelPlacement
from offload_runtime.model.padded_passes import GatheredPasses, NotReplayable, PaddedPasses, Runner, padded_passes
from offload_runtime.model.rows import PassRows, SharedRows, text_rows
from scheduler.plan.padding import Padding
from scheduler.plan.placement import Tier
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.layer_memory import LayerMemory, units_of
from sequoia_tree.uploads import upload

Parameters = tuple[nn.Parameter, ...]
_log = logging.getLogger(__name__)


def never() -> bool:
    """The default answer to "should I stop?"."""
    return False


class Model:
    """Loads its weights on construction; `forward` then runs passes over `cache`.

    on_reading, on_dequantizing: called with the bytes read or dequantized so far, and the total.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        checkpoint: Checkpoint,
        placement: ModelPlacement,
        reader: WeightReader,
        memory: DeviceMemory,
        on_reading: ByteProgress | None = None,
        on_dequantizing: ByteProgress | None = None,
    ):
        self._model, self._memory = skeleton.model, memory
        self.should_stop: Callable[[], bool] = never
        self.before_pass: Callable[[], None] | None = None
        self.device = memory.device
        self.config = skeleton.config
        self.vocab_size: int = skeleton.config.vocab_size
        self._last_position = placement.positions - 1
        self._lengths = TextLengths.of(skeleton.model)
        sequences = placement.sequences if self._lengths.are_fixed_to(placement.longest_text) else 1
        travelling = partial(placement.travelling.rows, memory) if placement.travelling else None
        branching = can_branch(skeleton.config.model_type)
        cache_class = let_branch(skeleton.model) if branching else TreeCache
        follow_rows(skeleton.model)
        how = (sequences, travelling, branching, placement.rows_in_8_bits)
        self.cache = cache_class(skeleton.config, placement.capacity, memory.add, *how)
        self._cache_argument = cache_argument(skeleton.model, self.cache)
        layers, limit = units_of(skeleton, checkpoint), placement.pinned_limit
        placed = (*placement.tiers, *[Tier.DEVICE] * (len(layers) - len(placement.tiers)))
        try:
            self._weights = LayerMemory(layers, placed, placement.slots, reader, memory, on_reading, limit)
        except BaseException:
            self.cache.free()
            raise
        self._choice = placement.choice if self._weights.streams_experts else None
        self._routed: list[int] = []  # routed experts of each layer in the current pass
        self._reading = self._weights.reading  # at the start of the pass
        self._hooks: list[RemovableHandle] = []
        self._tables: list[RowReader] = []
        try:
            self._bind(skeleton, placement.dequantized, on_dequantizing)
        except BaseException:
            self._close_files()
            self.cache.free()
            raise
        self.layers = len(skeleton.layers)
        self.layer_modules = tuple(layer.module for layer in skeleton.layers)
        self.layers_begun = 0  # in all passes so far; other threads may read it while a pass runs
        self.padded_total = 0
        self._padded: PaddedPasses | GatheredPasses | None = None
        self._in_one_piece = False  # whether the current pass must not be interrupted
        self._runs_copy = False  # whether the current layer has other weights bound than those of the target

    def pad_passes(self, padding: Padding, run: Runner) -> None:
        """From now on, passes that fit the widest shape are padded and run by `run`.

        `should_stop` is checked before such a pass, not between its layers.
        """
        assert self._weights.ring is None, "a streamed layer lies in another slot in every pass"
        self._padded = padded_passes(self._compute_padded, self.cache, self.device, padding, run)

    @property
    def replays(self) -> bool:
        """Whether small passes run in fixed shapes: requested, and not found impossible."""
        return self._padded is not None

    @property
    def streamed_bytes(self) -> int:
        """Bytes that cross the link in every pass if all experts are routed."""
        return self._weights.streamed_bytes

    @property
    def streamed_total(self) -> int:
        """Bytes that crossed the link for the passes so far, KV rows included."""
        rows = self.cache.travelling
        return self._weights.crossed_bytes + (rows.crossed_bytes if rows else 0)

    @property
    def fixed_rows(self) -> int:
        """How many leading rows of the current text do not depend on its length."""
        return self._lengths.fixed_rows

    def take_up(self, prompt: int, common: int, sequence: int = 0) -> None:
        """Switch a sequence to a text with a prompt of `prompt` tokens; keep the rows of its first `common` tokens."""
        self.cache.sequences[sequence].begin(prompt, common if self._lengths.begin(prompt) else 0)

    def reaches(self, text: int, sequence: int = 0) -> None:
        """A text has grown to `text` tokens; some models have to read it again at a certain length."""
        if self._lengths.must_restart(text):
            self.cache.sequences[sequence].truncate(0)

    def room(self, text: int) -> int:
        """How many tokens the next pass may add to a text of `text` tokens."""
        return self._lengths.room(text)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, rows: PassRows | SharedRows, logits_to_keep: int | Tensor) -> Tensor:
        """Run ``tokens [n]`` as the given rows, after those in the cache.

        logits_to_keep: how many of the last rows, or the numbers of rows, int64 [m], that logits ``[m, vocab]`` are
        returned for. The new cache rows stay uncommitted.
        Raises Interrupted between two layers if `should_stop` says so; the device is then at most two layers behind.
        """
        if not self._hooks:
            raise RuntimeError("the model is closed")
        assert len(tokens) == rows.count
        if self.before_pass:
            self.before_pass()
        self._lengths.begin_pass(min(rows.keys, self._last_position + 1))
        logits = self._padded_logits(tokens, rows, logits_to_keep)
        if logits is None:
            if self._weights.ring:
                self._weights.ring.rewind()
            self._choose_experts(rows)
            with attending(rows), self.cache.one_pass(rows):
                logits = self._compute(tokens, rows.row_positions, logits_to_keep)
        else:
            self.cache.advance_texts(rows)
        self._learn_from_pass(len(tokens))
        return logits

    def _choose_experts(self, rows: PassRows | SharedRows) -> None:
        """Layers already in the ring were fetched as the previous pass chose; they are valid in both modes."""
        self._routed.clear()
        self._reading = self._weights.reading
        if self._choice:
            self._weights.stream_experts(only_routed=self._choice.only_routed(rows.count, rows.past))

    def _learn_from_pass(self, rows: int) -> None:
        if self._choice:
            self._choice.observe(rows, self._routed)
            read, seconds = (now - before for now, before in zip(self._weights.reading, self._reading))
            self._choice.observe_reading(read, seconds)

    def _padded_logits(
        self, tokens: Tensor, rows: PassRows | SharedRows, logits_to_keep: int | Tensor
    ) -> Tensor | None:
        """The logits of a pass in a fixed shape; None if no shape fits."""
        if self._padded is None or self._lengths.vary or not self._padded.takes(rows):
            return None
        self._poll()
        try:
            with self._uninterrupted():
                logits = self._padded.forward(tokens, rows, logits_to_keep)
        except NotReplayable as reason:
            self._padded = None
            _log.info("%s runs without CUDA graphs: %s", self.config.model_type, reason)
            return None
        self.padded_total += 1
        return logits

    def _compute(self, tokens: Tensor, positions: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        """transformers' own forward; both int64 [n]. Logits of the last rows, of all if there are 0, or of some."""
        output = self._model(
            input_ids=tokens[None],
            # Rows past the last position never belong to a text, but must stay inside a table of learned positions.
            position_ids=positions.clamp(max=self._last_position)[None],
            use_cache=True,
            logits_to_keep=logits_to_keep,
            **{self._cache_argument: self.cache},
        )
        return output.logits[0] if isinstance(logits_to_keep, Tensor) else output.logits[0, -logits_to_keep:]

    def _compute_padded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The logits of all rows of a pass in a fixed shape; what it reads and writes stays where it is."""
        return self._compute(tokens, positions)

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Within the block, `should_stop` is not checked and nothing waits: a captured pass cannot be interrupted."""
        self._in_one_piece = True
        try:
            yield
        finally:
            self._in_one_piece = False

    def read(self, tokens: Sequence[int], most_rows: int, sequence: int = 0) -> Tensor:
        """Append text to a sequence, at most `most_rows` tokens per pass; logits ``[1, vocab]`` after its end.

        Every finished pass is committed, so its rows stay valid if a later pass fails.
        """
        assert tokens
        cached = self.cache.sequences[sequence]
        for begin in range(0, len(tokens), most_rows):
            piece = upload(tokens[begin : begin + most_rows], self.device)
            rows = text_rows(cached.length, len(piece), self.device, cached.first_row)
            logits = self.forward(piece, rows, logits_to_keep=1)
            cached.commit(range(len(piece)))
        return logits

    @contextmanager
    def unpadded(self) -> Iterator[None]:
        """Within the block, passes are not padded."""
        padded, self._padded = self._padded, None
        try:
            yield
        finally:
            self._padded = padded

    def without_streaming(self) -> AbstractContextManager[None]:
        """Within the block, streamed layers reuse the bytes in the ring: passes take the computing time alone."""
        return self._weights.ring.paused() if self._weights.ring else nullcontext()

    @contextmanager
    def watched(self, on_filled: Callable[[int, float, float], None]) -> Iterator[None]:
        """Within the block, `on_filled` is told when each streamed layer began and ended crossing the link."""
        ring = self._weights.ring
        if ring:
            ring.on_filled = on_filled
        try:
            yield
        finally:
            if ring:
                ring.on_filled = None

    def close(self) -> None:
        """Stop streaming and free weights and cache, even if this object is still referenced."""
        self._close_files()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._padded = None
        self._model.to_empty(device="meta")
        self.cache.free()

    def _close_files(self) -> None:
        self._weights.close()
        for table in self._tables:
            table.close()

    def _bind(self, skeleton: Skeleton, dequantized: int, on_dequantizing: ByteProgress | None) -> None:
        """Bind the modules to their weights: resident, streamed, or dequantized before use."""
        layers = (*skeleton.layers, skeleton.embeddings_and_head)
        quantized = [parameter for layer in layers[dequantized:] for parameter in layer.packed.values()]
        self._pairs = UncheckedPairs(parameter.packed for parameter in skeleton.packed)
        fill_decoded(skeleton, self._weights.resident[len(skeleton.layers)])
        self._bind_resident((*layers, *skeleton.codes), dequantized, on_dequantizing)
        self._hooks += self._add_hooks(skeleton.layers)
        scratch = self._memory.empty(scratch_bytes(quantized))
        self._hooks += decode_before_use(quantized, scratch, lambda: self._runs_copy, self._check_pairs)
        for table in (module for module in skeleton.model.modules() if isinstance(module, RowTable)):
            self._tables.append(RowReader(table.parts))
            table.open(self._tables[-1].read)

    def _bind_resident(
        self, layers: Sequence[UnitLayout], dequantized: int, on_dequantizing: ByteProgress | None
    ) -> None:
        """Dequantize the first layers, one at a time: the quantized bytes of each are freed before the next."""
        done, total = 0, sum(layer.layout.nbytes for layer in layers[:dequantized] if layer.decoded)
        with interrupts_deferred() as check_interrupts:
            for index in reversed([*self._weights.resident]):  # codes first; nothing else refers to their buffers
                layer = layers[index]
                if layer.decoded:
                    layer.bind(make_parameters(layer.layout, self._weights.resident[index]))
                    self._pairs.check(parameter.packed for parameter in layer.packed.values())
                if index >= dequantized or layer.decoded is None:
                    layer.bind(make_parameters(layer.layout, self._weights.resident[index]))
                    continue
                larger = self._memory.empty(layer.decoded.layout.nbytes)
                decode_layer(layer, self._weights.resident[index], larger)
                self._weights.replace(index, larger)
                if layer.code:
                    self._weights.replace(layers.index(layer.code), self._memory.empty(0))
                done += layer.layout.nbytes
                if on_dequantizing:
                    on_dequantizing(done, total)
                check_interrupts()

    def _add_hooks(self, layers: tuple[UnitLayout, ...]) -> Iterator[RemovableHandle]:
        ring = self._weights.ring
        shared: dict[tuple[int, Layout], Parameters] = {}
        for index, layer in enumerate(layers):
            yield layer.module.register_forward_pre_hook(self._begin_layer)
            if index in self._weights.resident:
                continue
            assert ring is not None
            slots = []
            for slot, buffer in enumerate(ring.slots):
                key = (slot, layer.layout)
                if key not in shared:
                    shared[key] = make_parameters(layer.layout, buffer[: layer.layout.nbytes])
                slots.append(shared[key])
            yield layer.module.register_forward_pre_hook(self._bind_next(index, layer, slots))
            if layer.experts and self._choice:
                fetch = self._fetch_experts(layer.experts)
                yield layer.experts.module.register_forward_pre_hook(fetch, with_kwargs=True)
            yield layer.module.register_forward_hook(self._release)

    def _check_pairs(self, weights: Sequence[Packed], chosen: Tensor | None) -> None:
        if not (self._weights.ring and self._weights.ring.is_paused):  # then slots hold bytes of other layers
            self._pairs.check(weights, chosen if self._weights.lacks_experts else None)

    def _begin_layer(self, module: nn.Module, args: Any) -> None:
        if not self._in_one_piece:
            self._weights.run_ahead.begin_layer()
            self._poll()
        self.layers_begun += 1

    def _poll(self) -> None:
        if self.should_stop():
            raise Interrupted

    def _bind_next(self, index: int, layer: UnitLayout, slots: list[Parameters]) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            layer.bind(slots[self._weights.acquire(index)])

        return hook

    def _fetch_experts(self, experts: Experts) -> Callable[[nn.Module, Any, Any], None]:
        position = position_of_choice(experts.module)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._weights.lacks_experts:
                return
            chosen = choice_among(args, kwargs, position)
            routed = list(range(experts.count))
            if chosen is not None:  # the host waits here until the device has chosen
                flags = routed_among(chosen, experts.count).tolist()
                routed = [expert for expert, is_routed in enumerate(flags) if is_routed]
            self._weights.fetch_experts(routed)
            self._routed.append(len(routed))

        return hook

    def _release(self, module: nn.Module, args: Any, output: Any) -> None:
        assert self._weights.ring is not None
        self._weights.ring.release()
