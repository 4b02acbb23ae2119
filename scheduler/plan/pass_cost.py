"""Predicted cost of passes: bytes over bandwidths and operations over speeds, put through the simulated ring.

layer    dequantizing, then products, max(weights / memory bandwidth, operations / speed), then attention,
         max(keys and values / memory bandwidth, operations / attention speed), one after another on one stream;
         GPU: at least the time the host needs to launch the kernels, which it does at the same time;
         CPU: products take weights / bandwidth + operations / speed, and Python's time is added
pass     layers, read, copied and computed concurrently as the ring allows, then the head over the nodes of the tree
         and the fixed cost of a pass
level    the same for a resident draft, over the nodes of one level
experts  all stream ahead with their layer, or only the routed ones are fetched once they are known, while nothing else
         runs: whichever gives the faster pass
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

from loaders.checkpoint.spec import ITEMSIZE, LayerSpec, ModelSpec
from loaders.dequantize import plain_cost
from scheduler.machine.machine import Machine
from scheduler.plan.memory import KV_BUFFERS, WRITTEN_OUT_ATTENTION
from scheduler.plan.padding import MOST_WHOLE_TEXTS, WIDTHS
from scheduler.plan.placement import Tier
from scheduler.plan.simulation import PassSeconds, Stage, simulate
from scheduler.plan.staging import STAGING_BUFFERS, pageable_layers

# Python time of one transformers decoder layer, without its computation, if not measured: on an x86-64 core.
LAYER_SECONDS = 0.35e-3
# In a replayed CUDA graph its some 45 kernels still take a few microseconds each: assumed, not measured.
REPLAYED_LAYER_SECONDS = 0.1e-3
# Dequantizing one weight on a CPU: 0.3 ns (int8) to 1.3 (AWQ), 0.9 of a low-bit copy, on two x86-64 cores.
DECODED_VALUE_SECONDS = 0.8e-9
# The same of all bits of a weight that is stored without loss: 29.4 and 29.8 ns on one core, with 4 and 5-bit codes.
RESTORED_VALUE_SECONDS = 30e-9
# A product of up to so many rows with a copy's codes takes as long as reading them so many times: the integer
# operations of the compiled kernel take 0.6 to 0.8 of the codes' time on an RTX 4090 and 5090, 1.8 on a 3090, more on
# data-centre cards. Assumed, not measured on a GPU.
CODE_PRODUCT_ROWS, CODE_PRODUCT_READS = 64, 2
# One launch of plain torch while dequantizing, and the matrices of a layer and of each of its experts.
LAUNCH_SECONDS, LAYER_MATRICES, EXPERT_MATRICES = 5e-6, 7, 3
# Bytes that eager attention moves per score, in some ten operations, in 16 bits and in float32.
WRITTEN_OUT_SCORE_BYTES = 44
# Rows in 8 bits are written dequantized, then scaled where they lie (read, written), before attention reads them.
DEQUANTIZED_ROW_MOVES = 3
# Latency until the first byte of fetched experts arrives: the host waits for the router, then requests them. Reading
# 4 KiB from disk to host memory takes 0.2 ms through the reading threads; the same is assumed for a GPU, not measured.
FETCH_SECONDS = 0.2e-3


_Kind = tuple[LayerSpec, Tier, bool]
"""A layer without name and location, its tier, and whether it streams from pageable memory."""


def expected_routed(experts: int, per_token: int, tokens: float) -> float:
    """The expected number of routed experts for tokens that are routed at random."""
    return experts * (1 - (1 - per_token / experts) ** tokens) if experts else 0.0


@dataclass(frozen=True)
class PassCost:
    """Predicts passes of one model under one placement on one machine. Unknown speeds count as zero cost.

    tiers: one per layer. slots: ring slots. kv_on_host: the KV rows of the texts in a pass cross the link with their
    layers; kv_pageable: from memory that is not pinned.
    """

    spec: ModelSpec
    tiers: Sequence[Tier]
    slots: int
    machine: Machine
    kv_on_host: bool = False
    kv_pageable: bool = False

    @property
    def is_known(self) -> bool:
        """Whether the bandwidth of every tier that streams is known."""
        crossing = {*self.tiers, *((Tier.HOST,) if self.kv_on_host else ())}
        return all(self._bandwidth(tier) for tier in crossing)

    @property
    def knows_computing(self) -> bool:
        """Whether the device's speed is known as well."""
        return self.machine.flops is not None and self.machine.memory_bandwidth is not None

    @property
    def knows_passes(self) -> bool:
        """Whether the fixed cost of passes is known: most of a small pass of a resident model."""
        return self.machine.pass_seconds is not None and self.machine.layer_seconds is not None

    def routed(self, rows: float) -> float | None:
        """The expected number of routed experts per layer in a pass over `rows` tokens; None for dense models."""
        count = max(layer.experts for layer in self.spec.layers)
        per_token = self.spec.experts_per_token
        return expected_routed(count, per_token, rows) if 0 < per_token < count else None

    def streamed_bytes(self, rows: int) -> int:
        """Bytes streamed by a pass over `rows` tokens that fetches only its routed experts."""
        routed, total = self.routed(rows), 0.0
        for layer, tier in zip(self.spec.layers, self.tiers):
            if tier is not Tier.DEVICE:
                on_disk = layer.disk_bytes, layer.expert_disk_bytes
                nbytes, experts = on_disk if tier is Tier.DISK else (layer.nbytes, layer.expert_bytes)
                left_out = 0.0 if routed is None or not layer.experts else 1 - routed / layer.experts
                total += nbytes - left_out * experts
        return round(total)

    def seconds(self, rows: int, nodes: int, context: int, gap: float = 0.0, texts: int = 1) -> PassSeconds:
        """A pass over `rows` tokens with logits for `nodes` of them and `context` tokens in the cache.

        gap: seconds between two passes, in which the ring fills up again. texts: share the rows, each with `context`
        tokens of its own in the cache.
        """
        whole = self.seconds_with(None, rows, nodes, context, gap, texts)
        routed = self.routed(rows)
        if routed is None:
            return whole
        fetched = self.seconds_with(routed, rows, nodes, context, gap, texts)
        return min(whole, fetched, key=lambda seconds: seconds.total)

    def seconds_with(
        self, routed: float | None, rows: int, nodes: int, context: int, gap: float = 0.0, texts: int = 1
    ) -> PassSeconds:
        """The same if only `routed` experts of each layer are fetched; None: all experts stream ahead."""
        computing = partial(self._layer_seconds, rows=rows, context=context, texts=texts)
        by_kind = [self._stage(*kind, computing(kind[0]), routed) for kind in self._kinds[0]]
        stages, slots = [by_kind[kind] for kind in self._kinds[1]], self.slots
        if self.kv_on_host:
            stages, slots = self._with_rows(stages, texts * context)
        head = self._head_seconds(nodes)
        stages.append(Stage(0.0, 0.0, head + (self.machine.pass_seconds or 0.0)))
        return simulate(stages, slots, STAGING_BUFFERS, gap)

    def _with_rows(self, stages: list[Stage], tokens: int) -> tuple[list[Stage], int]:
        """The stages with the copies of `tokens` KV rows to every layer, and the slots that these go through.

        They share the link with the layers. The rows of a resident layer are counted with those of the next streamed
        one, since they do not take its slot. If no layer streams, they alone go through their buffers.
        """
        nbytes = tokens * self.spec.kv_bytes_per_token / len(stages)
        rows = self._over(nbytes, self._link_bandwidth(self.kv_pageable))
        if not any(stage.copy or stage.fetch_copy for stage in stages):
            return [replace(stage, copy=rows) for stage in stages], KV_BUFFERS
        waiting, with_rows = 0.0, []
        for stage in stages:
            waiting += rows
            if stage.copy:
                stage, waiting = replace(stage, copy=stage.copy + waiting), 0.0
            with_rows.append(stage)
        first = next(number for number, stage in enumerate(with_rows) if stage.copy)
        with_rows[first] = replace(with_rows[first], copy=with_rows[first].copy + waiting)
        return with_rows, self.slots

    @cached_property
    def _kinds(self) -> tuple[list[_Kind], list[int]]:
        """The kinds of layers that cost the same, and each layer's index into them: most models have one or two."""
        pageable = pageable_layers(self.spec, self.tiers, self.machine.pinned_limit)
        numbers: dict[_Kind, int] = {}
        layers = enumerate(zip(_unnamed(self.spec.layers), self.tiers))
        kinds = ((layer, tier, index in pageable) for index, (layer, tier) in layers)
        by_layer = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
        return list(numbers), by_layer

    def _stage(self, layer: LayerSpec, tier: Tier, pageable: bool, compute: float, routed: float | None) -> Stage:
        if tier is Tier.DEVICE:
            return Stage(0.0, 0.0, compute)
        moving = partial(self._moving, tier, pageable)
        if routed is None or not layer.experts:
            return Stage(*moving(layer.nbytes, layer.disk_bytes), compute)
        read, copy = moving(layer.nbytes - layer.expert_bytes, layer.disk_bytes - layer.expert_disk_bytes)
        share = routed / layer.experts
        fetch_read, fetch_copy = moving(share * layer.expert_bytes, share * layer.expert_disk_bytes)
        return Stage(read, copy, compute, fetch_read, FETCH_SECONDS + fetch_copy)

    def _moving(self, tier: Tier, pageable: bool, nbytes: float, disk_bytes: float) -> tuple[float, float]:
        """(seconds to read, seconds to copy) some bytes of a streamed layer."""
        if tier is Tier.HOST:
            return 0.0, self._over(nbytes, self._link_bandwidth(pageable))
        read = self._over(disk_bytes, self.machine.disk_bandwidth)
        return (read, self._over(nbytes, self.machine.link_bandwidth)) if self.machine.device == "cuda" else (0.0, read)

    def _layer_seconds(self, layer: LayerSpec, rows: int, context: int, texts: int) -> float:
        per_token = self.spec.experts_per_token / layer.experts if layer.experts else 1.0
        routed = expected_routed(layer.experts, self.spec.experts_per_token, rows)
        routed_share = routed / layer.experts if layer.experts else 1.0
        dense_share = 1 - layer.expert_bytes / layer.nbytes
        multiplied, touched = (dense_share + (1 - dense_share) * share for share in (per_token, routed_share))
        operations = 2 * rows * multiplied * layer.weight_bytes / ITEMSIZE[self.spec.dtype]
        if self._multiplies_codes(layer, rows):
            products = self._product_seconds(CODE_PRODUCT_READS * layer.packed_bytes, rows, operations)
        else:
            products = self._dequantizing_seconds(layer, touched)
            products += self._product_seconds(touched * layer.weight_bytes, rows, operations)
        computing = products + self._attention_seconds(rows, context, texts)
        launching = self._launch_seconds(rows, layer, texts)
        if self.machine.device == "cuda":  # the host goes ahead
            return max(computing, launching)
        return computing + launching

    def _multiplies_codes(self, layer: LayerSpec, rows: int) -> bool:
        """Whether a kernel multiplies by the codes of a layer's copy, and no weight is written; not for experts."""
        fused = self.machine.device == "cuda" and not self.machine.no_kernels and rows <= CODE_PRODUCT_ROWS
        return fused and bool(self.spec.copy_bits and layer.packed_bytes) and not self.spec.experts_per_token

    def _dequantizing_seconds(self, layer: LayerSpec, touched: float) -> float:
        """Reading the quantized weights of a layer, a share `touched` of them, and writing the dequantized ones."""
        if self.machine.device == "cuda" and self.machine.no_kernels:  # all: to ask which would wait
            values = layer.decoded_bytes / ITEMSIZE[self.spec.dtype]
            return self._over(values * plain_cost.MOVED_BYTES, self.machine.memory_bandwidth)
        moved = touched * (layer.packed_bytes + layer.resident_code_bytes + layer.decoded_bytes)
        moving = self._over(moved, self.machine.memory_bandwidth)
        if self.machine.device == "cuda" or not self.knows_computing:
            return moving
        whole = self.spec.code_bits is not None and not self.spec.copy_bits
        seconds = RESTORED_VALUE_SECONDS if whole else DECODED_VALUE_SECONDS
        return moving + touched * layer.decoded_bytes / ITEMSIZE[self.spec.dtype] * seconds

    def _attention_seconds(self, rows: int, context: int, texts: int) -> float:
        """One layer's attention: each text's share of the rows over its own context and itself.

        A replayed pass over several texts gathers their keys, and compares its rows with all of them.
        """
        spec, machine = self.spec, self.machine
        gathers = texts > 1 and self._is_replayed(rows, texts)
        scores = rows * (context + rows / texts) * (texts if gathers else 1)
        multiplying = self._over(4 * scores * spec.hidden_size, machine.attention_flops or machine.flops)
        index_bytes = spec.index.token_bytes if spec.index is not None else 0
        stored, read = (
            (texts * context + rows) * nbytes / len(spec.layers)
            for nbytes in (spec.kv_bytes_per_token, spec.computed_kv_bytes_per_token + index_bytes)
        )
        attending = max(multiplying, self._over(read, machine.memory_bandwidth))
        if gathers:
            attending += self._over(2 * stored, machine.memory_bandwidth)
        if spec.computed_rows:
            attending += self._over(stored + DEQUANTIZED_ROW_MOVES * read, machine.memory_bandwidth)
        if spec.model_type not in WRITTEN_OUT_ATTENTION:
            return attending
        return attending + self._over(spec.num_heads * scores * WRITTEN_OUT_SCORE_BYTES, machine.memory_bandwidth)

    def _is_replayed(self, rows: int, texts: int) -> bool:
        on_gpu = self.machine.device == "cuda" and not self.slots and not self.kv_on_host
        return on_gpu and rows <= WIDTHS[-1] and texts <= MOST_WHOLE_TEXTS

    def _launch_seconds(self, rows: int, layer: LayerSpec, texts: int) -> float:
        if not self.knows_computing:
            return 0.0
        on_gpu = self.machine.device == "cuda"
        if self._is_replayed(rows, texts):
            return REPLAYED_LAYER_SECONDS
        matrices = LAYER_MATRICES + EXPERT_MATRICES * layer.experts if layer.packed_bytes else 0
        operations = matrices * plain_cost.LAUNCHES if on_gpu and self.machine.no_kernels else 0
        return (self.machine.layer_seconds or LAYER_SECONDS) + operations * LAUNCH_SECONDS

    def _head_seconds(self, nodes: int) -> float:
        values = self.spec.vocab_size * self.spec.hidden_size
        return self._product_seconds(values * ITEMSIZE[self.spec.dtype], nodes, 2 * nodes * values)

    def _product_seconds(self, nbytes: float, rows: int, operations: float) -> float:
        """Matrix products of `rows` rows with weights of `nbytes` bytes."""
        machine, multiplying = self.machine, self._over(operations, self.machine.flops)
        if machine.device == "cpu" and rows > 1:  # a CPU repacks the weights, then multiplies
            return self._over(nbytes, machine.product_bandwidth or machine.memory_bandwidth) + multiplying
        return max(self._over(nbytes, machine.memory_bandwidth), multiplying)

    def _bandwidth(self, tier: Tier) -> float | None:
        """The bandwidth that limits a tier; an arbitrary number for the device itself."""
        if tier is Tier.DEVICE:
            return 1.0
        return self.machine.link_bandwidth if tier is Tier.HOST else self.machine.disk_bandwidth

    def _link_bandwidth(self, pageable: bool) -> float | None:
        """The link's bandwidth from pinned or pageable memory; pageable counts as pinned if not known."""
        pinned, other = self.machine.link_bandwidth, self.machine.pageable_bandwidth
        return other or pinned if pageable else pinned

    @staticmethod
    def _over(amount: float, rate: float | None) -> float:
        return amount / rate if rate else 0.0


@lru_cache(maxsize=16)  # trees of many sizes are compared for the same layers
def _unnamed(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Layers without name and location: those that cost the same are then equal."""
    return tuple(replace(layer, name="", stored_at=None) for layer in layers)


def resident_cost(spec: ModelSpec, machine: Machine) -> PassCost:
    """The cost of a model that is fully resident on the device, as drafts are."""
    return PassCost(spec, (Tier.DEVICE,) * len(spec.layers), 0, machine)
