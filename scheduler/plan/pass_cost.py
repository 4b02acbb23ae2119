"""What passes are predicted to cost: bytes over bandwidths and operations over speed, put through the ring.

layer     decoding its packed weights, then products, max(weights / memory bandwidth, operations / speed), and
attention,
         max(keys and values / memory bandwidth, operations / its own speed): these follow one another on one stream;
         GPU: at least what launching its kernels takes, which the host does meanwhile;
         CPU: products take weights / bandwidth + operations / speed, and Python comes on top
pass     layers, read, copied and computed side by side as the ring allows, then the head over the nodes of the tree,
and
         what every pass takes
level    the same for a draft that is resident, over the nodes of one level
experts  all stream ahead with their layer; or those that are hit are fetched when it is known which, while nothing else
         goes on: whichever makes the quicker pass
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

from loaders.checkpoint.spec import ITEMSIZE, LayerSpec, ModelSpec
from loaders.dequantize import plain_cost
from scheduler.machine.machine import Machine
from scheduler.plan.memory import WRITTEN_OUT_ATTENTION
from scheduler.plan.padding import WIDTHS
from scheduler.plan.placement import Tier
from scheduler.plan.simulation import PassSeconds, Stage, simulate
from scheduler.plan.staging import STAGING_BUFFERS, pageable_layers

# Python of one of transformers' decoder layers, without what it computes, where it is not measured: an x86-64 core.
LAYER_SECONDS = 0.35e-3
# Replayed as part of a CUDA graph its kernels, some 45, still take a few microseconds each: assumed, not measured.
REPLAYED_LAYER_SECONDS = 0.1e-3
# Decoding one value of a packed weight on a processor: 0.3 ns (int8) to 1.3 (AWQ) on two x86-64 cores.
DECODED_VALUE_SECONDS = 0.8e-9
# An operation that plain torch launches to dequantize, and the matrices of a layer and of each of its experts.
LAUNCH_SECONDS, LAYER_MATRICES, EXPERT_MATRICES = 5e-6, 7, 3
# What attention moves for each score where it is written out in some ten operations, in 16 bits and in float32.
WRITTEN_OUT_SCORE_BYTES = 44
# Until the first byte of experts that are fetched arrives: the host waits for the router, then asks. From disk to a
# processor's memory 4 KiB take 0.2 ms, through the reading threads; for a GPU as much is assumed, not measured.
FETCH_SECONDS = 0.2e-3


_Kind = tuple[LayerSpec, Tier, bool]
"""A layer without its name and place, its tier, and whether it streams out of memory that is not pinned."""


def expected_routed(experts: int, per_token: int, tokens: float) -> float:
    """How many experts some tokens hit that choose at random."""
    return experts * (1 - (1 - per_token / experts) ** tokens) if experts else 0.0


@dataclass(frozen=True)
class PassCost:
    """Predicts passes of one model under one placement on one machine. What of the machine is not known costs nothing.

    tiers: one per layer. slots: of the ring.
    """

    spec: ModelSpec
    tiers: Sequence[Tier]
    slots: int
    machine: Machine

    @property
    def is_known(self) -> bool:
        """Whether the bandwidth of every tier that streams is known."""
        return all(self._bandwidth(tier) for tier in set(self.tiers))

    @property
    def knows_computing(self) -> bool:
        """Whether the device's speed is known, too."""
        return self.machine.flops is not None and self.machine.memory_bandwidth is not None

    @property
    def knows_passes(self) -> bool:
        """Whether the fixed cost of passes is known: of models in memory it is most of what small passes take."""
        return self.machine.pass_seconds is not None and self.machine.layer_seconds is not None

    def routed(self, rows: float) -> float | None:
        """Experts of each layer that a pass over so many tokens hits; None where they are not told apart."""
        count = max(layer.experts for layer in self.spec.layers)
        per_token = self.spec.experts_per_token
        return expected_routed(count, per_token, rows) if 0 < per_token < count else None

    def streamed_bytes(self, rows: int) -> int:
        """What a pass over `rows` tokens streams where it fetches only the experts that it hits."""
        routed, total = self.routed(rows), 0.0
        for layer, tier in zip(self.spec.layers, self.tiers):
            if tier is not Tier.DEVICE:
                on_disk = layer.disk_bytes, layer.expert_disk_bytes
                nbytes, experts = on_disk if tier is Tier.DISK else (layer.nbytes, layer.expert_bytes)
                left_out = 0.0 if routed is None or not layer.experts else 1 - routed / layer.experts
                total += nbytes - left_out * experts
        return round(total)

    def seconds(self, rows: int, nodes: int, context: int, gap: float = 0.0) -> PassSeconds:
        """A pass over `rows` tokens, logits after `nodes` of them, behind `context` tokens in the cache.

        gap: seconds between two passes, in which the ring is filled up again.
        """
        whole = self.seconds_with(None, rows, nodes, context, gap)
        routed = self.routed(rows)
        if routed is None:
            return whole
        return min(whole, self.seconds_with(routed, rows, nodes, context, gap), key=lambda seconds: seconds.total)

    def seconds_with(self, routed: float | None, rows: int, nodes: int, context: int, gap: float = 0.0) -> PassSeconds:
        """The same, where so many experts of each layer are fetched, and no others; None: all stream ahead."""
        by_kind = [self._stage(*kind, rows, context, routed) for kind in self._kinds[0]]
        stages = [by_kind[kind] for kind in self._kinds[1]]
        head = self._head_seconds(nodes)
        stages.append(Stage(0.0, 0.0, head + (self.machine.pass_seconds or 0.0)))
        return simulate(stages, self.slots, STAGING_BUFFERS, gap)

    @cached_property
    def _kinds(self) -> tuple[list[_Kind], list[int]]:
        """The kinds of layers that cost alike, and the number of each layer's kind: most models have one or two."""
        pageable = pageable_layers(self.spec, self.tiers, self.machine.pinned_limit)
        numbers: dict[_Kind, int] = {}
        layers = enumerate(zip(_unnamed(self.spec.layers), self.tiers))
        kinds = ((layer, tier, index in pageable) for index, (layer, tier) in layers)
        by_layer = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
        return list(numbers), by_layer

    def _stage(
        self, layer: LayerSpec, tier: Tier, pageable: bool, rows: int, context: int, routed: float | None
    ) -> Stage:
        compute = self._unit_seconds(layer, rows, context)
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
        """Seconds to read and to copy bytes of a layer that streams."""
        if tier is Tier.HOST:
            return 0.0, self._over(nbytes, self._link_bandwidth(pageable))
        read = self._over(disk_bytes, self.machine.disk_bandwidth)
        return (read, self._over(nbytes, self.machine.link_bandwidth)) if self.machine.device == "cuda" else (0.0, read)

    def _unit_seconds(self, layer: LayerSpec, rows: int, context: int) -> float:
        per_token = self.spec.experts_per_token / layer.experts if layer.experts else 1.0
        hit = (
            expected_routed(layer.experts, self.spec.experts_per_token, rows) / layer.experts if layer.experts else 1.0
        )
        dense_share = 1 - layer.expert_bytes / layer.nbytes
        multiplied, touched = (dense_share + (1 - dense_share) * share for share in (per_token, hit))
        operations = 2 * rows * multiplied * layer.weight_bytes / ITEMSIZE[self.spec.dtype]
        products = self._product_seconds(touched * layer.weight_bytes, rows, operations)
        computing = self._decoding_seconds(layer, touched) + products + self._attention_seconds(rows, context)
        launching = self._launch_seconds(rows, layer)
        if self.machine.device == "cuda":  # the host goes ahead
            return max(computing, launching)
        return computing + launching

    def _decoding_seconds(self, layer: LayerSpec, touched: float) -> float:
        """Reading the packed weights of a layer, of experts those that are `touched`, and writing the decoded ones."""
        if self.machine.device == "cuda" and self.machine.no_kernels:  # all experts: to ask which would wait
            values = layer.decoded_bytes / ITEMSIZE[self.spec.dtype]
            return self._over(values * plain_cost.MOVED_BYTES, self.machine.memory_bandwidth)
        moving = self._over(touched * (layer.packed_bytes + layer.decoded_bytes), self.machine.memory_bandwidth)
        if self.machine.device == "cuda" or not self.knows_computing:
            return moving
        return moving + touched * layer.decoded_bytes / ITEMSIZE[self.spec.dtype] * DECODED_VALUE_SECONDS

    def _attention_seconds(self, rows: int, context: int) -> float:
        """Of one layer over the keys and values of the context and of the rows themselves."""
        spec, machine = self.spec, self.machine
        scores = rows * (context + rows)
        multiplying = self._over(4 * scores * spec.hidden_size, machine.attention_flops or machine.flops)
        read = (context + rows) * spec.kv_bytes_per_token / len(spec.layers)
        attending = max(multiplying, self._over(read, machine.memory_bandwidth))
        if spec.model_type not in WRITTEN_OUT_ATTENTION:
            return attending
        return attending + self._over(spec.num_heads * scores * WRITTEN_OUT_SCORE_BYTES, machine.memory_bandwidth)

    def _launch_seconds(self, rows: int, layer: LayerSpec) -> float:
        if not self.knows_computing:
            return 0.0
        on_gpu = self.machine.device == "cuda"
        if on_gpu and not self.slots and rows <= WIDTHS[-1]:
            return REPLAYED_LAYER_SECONDS
        matrices = LAYER_MATRICES + EXPERT_MATRICES * layer.experts if layer.packed_bytes else 0
        operations = matrices * plain_cost.LAUNCHES if on_gpu and self.machine.no_kernels else 0
        return (self.machine.layer_seconds or LAYER_SECONDS) + operations * LAUNCH_SECONDS

    def _head_seconds(self, nodes: int) -> float:
        values = self.spec.vocab_size * self.spec.hidden_size
        return self._product_seconds(values * ITEMSIZE[self.spec.dtype], nodes, 2 * nodes * values)

    def _product_seconds(self, nbytes: float, rows: int, operations: float) -> float:
        """Products of `rows` rows with weights of `nbytes`."""
        machine, multiplying = self.machine, self._over(operations, self.machine.flops)
        if machine.device == "cpu" and rows > 1:  # it lays weights out anew, then multiplies
            return self._over(nbytes, machine.product_bandwidth or machine.memory_bandwidth) + multiplying
        return max(self._over(nbytes, machine.memory_bandwidth), multiplying)

    def _bandwidth(self, tier: Tier) -> float | None:
        """Of what the tier is limited by; any number for the device itself."""
        if tier is Tier.DEVICE:
            return 1.0
        return self.machine.link_bandwidth if tier is Tier.HOST else self.machine.disk_bandwidth

    def _link_bandwidth(self, pageable: bool) -> float | None:
        """Of the link out of pinned memory or out of any; where only one is known, both are thought alike."""
        pinned, other = self.machine.link_bandwidth, self.machine.pageable_bandwidth
        return other or pinned if pageable else pinned

    @staticmethod
    def _over(amount: float, rate: float | None) -> float:
        return amount / rate if rate else 0.0


@lru_cache(maxsize=16)  # trees of many sizes are weighed for the same layers
def _unnamed(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Units without name and place, by which those that cost alike are equal."""
    return tuple(replace(layer, name="", stored_at=None) for layer in layers)


def resident_cost(spec: ModelSpec, machine: Machine) -> PassCost:
    """Of a model that lies on the device whole, as drafts do."""
    return PassCost(spec, (Tier.DEVICE,) * len(spec.layers), 0, machine)
