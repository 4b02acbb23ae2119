"""The plan: each layer's tier, the ring slots, the tree's size, and the predicted cost of a pass.

`make_plan` is a pure function of frozen records. Its result is printed, tested and benchmarked, and the executor reads
nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import format_size
from scheduler.machine.machine import Machine
from scheduler.plan.dequantized_layers import NONE_DECODED, DecodedLayers, decoded_layers, loading_item
from scheduler.plan.memory import (
    PassShape,
    PlanItem,
    kv_bytes,
    read_chunk_bytes,
    replayed,
    target_kv_bytes,
    weight_bytes,
    workspace_bytes,
)
from scheduler.plan.padding import Padding
from scheduler.plan.pass_cost import PassCost, resident_cost
from scheduler.plan.placement import (
    Placement,
    Tier,
    bytes_in,
    copied_bytes,
    device_bytes,
    host_bytes,
    place_on_device,
    place_on_host,
)
from scheduler.plan.remedies import Shortage, refusal
from scheduler.plan.request import Limits, PlanRequest
from scheduler.plan.staging import disk_staging_bytes, pageable_layers

__all__ = ["Limits", "Plan", "PlanItem", "Tier", "find_plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, bandwidths in bytes per second, times in seconds; None for unknown values.

    `tiers` has one entry per layer. The first `decoded` layers are dequantized while they are loaded, other quantized
    layers before every use; `dequantized_by`, on a GPU that dequantizes: "fused kernels" or "plain torch".
    `context_wanted` is what `context_length` would be with enough memory. The tree has at most `tree_size` nodes, root
    included, none deeper than `tree_depth`; with nothing to draft it is the root alone. `rows` is the most query tokens
    of one pass: prompts are read in such chunks. `texts` share a pass, whose trees have at most `nodes` nodes together;
    `texts_wanted` were asked for. In the KV caches each has `cache_rows` positions, which take `kv_bytes`. The target's
    lie in host memory if `kv` is "host"; then `kv_token_bytes` cross the link in every pass for each token of every
    text. `kv_stays`: why they are on the device though "host" was asked for. The target's rows have `kv_bits`, those of
    its computation if it is None. Every reading thread reads
    `read_chunk_bytes` at once. `graphs`: those of "target" and "draft" whose passes, as far as `padding` goes,
    are replayed as CUDA graphs.
    `streamed_bytes` counts, per pass, host layers as they cross the link and disk layers as they are read.
    `token_bytes` is the same for a pass over one token that leaves out experts it is not routed to; `seconds_per_pass`
    is the time of such a pass. `code_bytes` of streamed layers stay on the device, counted with the draft
    that they are. `not_read`: "images are not read", where only the text part of a multimodal model runs.
    """

    model: str
    draft: str | None
    machine: Machine
    dtype: str
    weight_form: str
    weight_bytes: int
    tiers: tuple[Tier, ...]
    decoded: DecodedLayers
    dequantized_by: str | None
    slots: int
    slot_bytes: int
    context_length: int
    context_wanted: int
    tree_size: int
    tree_depth: int
    rows: int
    texts: int
    texts_wanted: int
    nodes: int
    cache_rows: int
    kv_bytes: int
    kv: str
    kv_token_bytes: int
    kv_stays: str | None
    kv_bits: int | None
    read_chunk_bytes: int
    graphs: tuple[str, ...]
    workspace_bytes: int
    items: tuple[PlanItem, ...]
    device_budget: int
    host_budget: int
    streamed_bytes: int
    token_bytes: int
    seconds_per_pass: float | None
    code_bytes: int = 0
    not_read: str = ""

    @property
    def device(self) -> str:
        """The kind of device: "cpu" or "cuda"."""
        return self.machine.device

    @property
    def device_name(self) -> str:
        """The device as its maker calls it."""
        return self.machine.device_name

    @property
    def link_bandwidth(self) -> float | None:
        """Of the path over which layers stream: host memory to GPU, or disk to memory without a GPU."""
        return self.machine.disk_bandwidth if self.device == "cpu" else self.machine.link_bandwidth

    @property
    def slow_dequantizing(self) -> str | None:
        """Why dequantizing is slower than it could be, and what helps, in one line; None if it is not."""
        if self.dequantized_by != "plain torch":
            return None
        return f"Quantized weights are dequantized by plain torch, which is slower: {self.machine.no_kernels}."

    @property
    def device_bytes(self) -> int:
        """All bytes planned on the device; at most `device_budget`."""
        return sum(item.device_bytes for item in self.items)

    @property
    def host_bytes(self) -> int:
        """All bytes planned in host memory beside a GPU; at most `host_budget`."""
        return sum(item.host_bytes for item in self.items)

    @property
    def pageable_bytes(self) -> int:
        """The part of `streamed_bytes` that crosses the link from host memory that cannot be pinned."""
        return sum(item.pageable_bytes for item in self.items)

    @property
    def disk_bytes(self) -> int:
        """The part of `streamed_bytes` that is read from disk."""
        return sum(item.disk_bytes for item in self.items)

    @property
    def kv_streamed_bytes(self) -> int:
        """KV rows that cross the link in a pass, once every text fills its context."""
        return self.texts * self.context_length * self.kv_token_bytes

    @property
    def padding(self) -> Padding:
        """The shapes of passes that are replayed."""
        return Padding.of_texts(self.texts, self.tree_size, self.nodes, self.cache_rows)

    @property
    def pinned_limit(self) -> int | None:
        """Most bytes of host memory to pin for layers: KV rows that lie there come first. None: no limit is known."""
        return _left_to_layers(self.machine, self.texts * self.cache_rows * self.kv_token_bytes).pinned_limit

    def target_cost(self, spec: ModelSpec) -> PassCost:
        """The cost model of the target's passes; `spec` is the one it was planned with."""
        spec, kv_bytes = spec.with_decoded(self.decoded.target), self.texts * self.cache_rows * self.kv_token_bytes
        return _cost(spec, self.tiers, self.slots, self.machine, kv_bytes)

    def draft_cost(self, spec: ModelSpec, target: ModelSpec) -> PassCost:
        """The cost model of the passes of the draft, which is resident. A copy runs layers that are resident as the
        target has them."""
        if spec.copy_bits:
            pairs = zip(spec.layers, target.layers, self.tiers, strict=True)
            layers = tuple(own if tier is Tier.DEVICE else copied for copied, own, tier in pairs)
            return resident_cost(replace(spec, layers=layers), self.machine)
        return resident_cost(spec.with_decoded(self.decoded.draft), self.machine)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values, derived figures included."""
        derived = (
            "device",
            "device_name",
            "link_bandwidth",
            "device_bytes",
            "host_bytes",
            "pageable_bytes",
            "disk_bytes",
            "kv_streamed_bytes",
        )
        return {
            **asdict(self),
            "tiers": [tier.value for tier in self.tiers],
            "items": [asdict(item) for item in self.items],
            **{name: getattr(self, name) for name in derived},
        }


def make_plan(
    spec: ModelSpec,
    draft: ModelSpec | None,
    machine: Machine,
    limits: Limits | None = None,
    smaller: Sequence[tuple[str, ModelSpec]] = (),
) -> Plan:
    """Decide where every layer is kept. Nothing that `limits` asks for is ever reduced.

    `smaller`: (options, spec) pairs that would run something smaller in place of `spec`, as advice if nothing fits.

    Raises DoesNotFitError, itemised and with options that work here, if not even two slots fit; ValueError for limits
    that make no sense; UnsupportedModelError for a draft beside a model whose state cannot branch.
    """
    request = PlanRequest(spec, draft, machine, limits or Limits(), tuple(smaller))
    outcome = _solve(request)
    if isinstance(outcome, Shortage):
        raise refusal(request, outcome, _effect)
    return outcome


def find_plan(spec: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits) -> Plan | None:
    """Like `make_plan`, but None if nothing fits: looking for what would takes some hundred times as long."""
    outcome = _solve(PlanRequest(spec, draft, machine, limits))
    return None if isinstance(outcome, Shortage) else outcome


def _solve(request: PlanRequest) -> Plan | Shortage:
    """The first attempt that fits, else the smallest shortage."""
    shortages: list[Shortage] = []
    for shape, placement in _attempts(request):
        plan = _plan(request, shape, placement)
        shortage = _shortage(plan)
        if shortage is None:
            return plan if plan.slots else _with_dequantized(request, shape, placement, plan)
        shortages.append(shortage)
    return min(shortages, key=lambda shortage: shortage.needed - shortage.available)


def _attempts(request: PlanRequest) -> Iterator[tuple[PassShape, Placement]]:
    """Everything on the device, then streaming, for each context length in turn."""
    whole = Placement((Tier.DEVICE,) * len(request.spec.layers), 0, 0)
    for context_length in request.context_lengths:
        for shape in request.resident_shapes(context_length):
            yield shape, whole
        for shape in request.streaming_shapes(context_length):
            yield shape, _place(request, shape)


def _with_dequantized(request: PlanRequest, shape: PassShape, placement: Placement, plan: Plan) -> Plan:
    """`plan`, of this shape and placement, with layers dequantized into the memory it leaves."""
    decoded = decoded_layers(request, plan.device_budget - plan.device_bytes)
    return plan if decoded == NONE_DECODED else _plan(request, shape, placement, decoded)


def _shortage(plan: Plan) -> Shortage | None:
    """What keeps `plan` from fitting."""
    if plan.device_bytes > plan.device_budget:
        return Shortage("device", plan.items, plan.device_budget)
    if plan.host_bytes > plan.host_budget:
        return Shortage("host", plan.items, plan.host_budget)
    return None


def _place(request: PlanRequest, shape: PassShape) -> Placement:
    """Place layers in the memory that the fixed items leave."""
    layers, items = request.spec.layers, request.fixed_items(shape)
    device_room = request.device_budget - sum(item.device_bytes for item in items)
    placement = place_on_device(layers, device_room, request.copies)
    if request.machine.device == "cpu" or device_bytes(layers, placement, request.copies) > device_room:
        return placement
    room = request.host_budget - sum(item.host_bytes for item in items)
    return place_on_host(layers, placement, room, disk_staging_bytes)


def _plan(request: PlanRequest, shape: PassShape, placement: Placement, decoded: DecodedLayers = NONE_DECODED) -> Plan:
    """The plan for a placement, with everything that follows from it."""
    as_loaded = decoded.of(request)
    spec, tiers = as_loaded.spec, placement.tiers
    from_host, disk_bytes = bytes_in(spec.layers, tiers, Tier.HOST), _disk_bytes(spec, tiers)
    on_host = target_kv_bytes(spec, shape) if shape.kv_on_host else 0
    cost = _cost(spec, tiers, placement.slots, request.machine, on_host)
    return Plan(
        model=spec.name,
        draft=request.draft.name if request.draft else None,
        machine=request.machine,
        dtype=spec.dtype,
        weight_form=spec.weight_form,
        weight_bytes=weight_bytes(request.spec),
        tiers=tiers,
        decoded=decoded,
        dequantized_by=_dequantized_by(request, shape),
        slots=placement.slots,
        slot_bytes=placement.slot_bytes,
        context_length=shape.context_length,
        context_wanted=request.context_lengths[0],
        tree_size=shape.tree_size,
        tree_depth=request.tree_depth(shape.tree_size),
        rows=shape.rows,
        texts=shape.texts,
        texts_wanted=request.limits.parallel or 1,
        nodes=shape.nodes,
        cache_rows=shape.cache_rows,
        kv_bytes=kv_bytes(request.models, shape),
        kv="host" if shape.kv_on_host else "device",
        kv_token_bytes=spec.kv_bytes_per_token if shape.kv_on_host else 0,
        kv_stays=request.kv_stays if request.limits.kv == "host" else None,
        kv_bits=spec.kv_bits,
        read_chunk_bytes=read_chunk_bytes(request.models),
        graphs=replayed(request.models, request.machine.device, shape),
        workspace_bytes=workspace_bytes(request.models, shape),
        items=(
            *_layer_items(spec, placement, _left_to_layers(request.machine, on_host), decoded.target),
            *_copies(request, tiers),
            *as_loaded.fixed_items(shape),
            *(() if decoded == NONE_DECODED else (loading_item(request),)),
        ),
        device_budget=request.device_budget,
        host_budget=request.host_budget,
        streamed_bytes=from_host + disk_bytes,
        token_bytes=cost.streamed_bytes(1),
        seconds_per_pass=_seconds_per_pass(cost, shape.context_length),
        code_bytes=sum(layer.resident_code_bytes for layer, tier in zip(spec.layers, tiers) if tier is not Tier.DEVICE),
        not_read=spec.not_read,
    )


def _cost(spec: ModelSpec, tiers: Sequence[Tier], slots: int, machine: Machine, kv_bytes: int) -> PassCost:
    """The cost of passes with `kv_bytes` of KV rows in host memory."""
    pageable = machine.pinned_limit is not None and kv_bytes > machine.pinned_limit
    return PassCost(spec, tiers, slots, _left_to_layers(machine, kv_bytes), kv_bytes > 0, pageable)


def _left_to_layers(machine: Machine, kv_bytes: int) -> Machine:
    """The machine with what can be pinned beside `kv_bytes` of KV rows."""
    limit = machine.pinned_limit
    return machine if limit is None or not kv_bytes else replace(machine, pinned_limit=max(0, limit - kv_bytes))


def _dequantized_by(request: PlanRequest, shape: PassShape) -> str | None:
    if request.machine.device == "cpu" or not request.dequantizes(shape):
        return None
    return "plain torch" if request.machine.no_kernels else "fused kernels"


def _layer_items(spec: ModelSpec, placement: Placement, machine: Machine, decoded: int) -> Iterator[PlanItem]:
    tiers = placement.tiers
    resident = tiers.count(Tier.DEVICE)
    if decoded:
        yield PlanItem(f"target, {_count(decoded, 'decoded')}", sum(layer.nbytes for layer in spec.layers[:decoded]))
    if resident > decoded:
        nbytes = bytes_in(spec.layers[decoded:], tiers[decoded:], Tier.DEVICE)
        yield PlanItem(f"target, {_count(resident - decoded, 'resident')}", nbytes)
    if placement.slots:
        yield PlanItem(
            f"target, {_count(len(tiers) - resident, 'streamed')} ({placement.slots} slots)",
            device_bytes=placement.slots * placement.slot_bytes,
            host_bytes=host_bytes(spec.layers, tiers),
            disk_bytes=_disk_bytes(spec, tiers),
            pageable_bytes=_pageable_bytes(spec, tiers, machine.pinned_limit),
        )
    if Tier.DISK in tiers and machine.device == "cuda":
        yield PlanItem("staging, read ahead from disk", host_bytes=disk_staging_bytes(spec.layers, tiers))


def _copies(request: PlanRequest, tiers: Sequence[Tier]) -> Iterator[PlanItem]:
    if nbytes := copied_bytes(tiers, request.copies):
        assert request.draft is not None
        yield PlanItem(request.draft.name, nbytes)


def _pageable_bytes(spec: ModelSpec, tiers: tuple[Tier, ...], limit: int | None) -> int:
    """Bytes per pass that cross the link from memory that cannot be pinned."""
    return sum(spec.layers[index].nbytes for index in pageable_layers(spec, tiers, limit))


def _count(layers: int, kind: str) -> str:
    return f"{layers} {kind} layer{'s' * (layers != 1)}"


def _disk_bytes(spec: ModelSpec, tiers: tuple[Tier, ...]) -> int:
    """Bytes read per pass: the layers of the disk tier in their stored dtype."""
    return sum(layer.disk_bytes for layer, tier in zip(spec.layers, tiers, strict=True) if tier is Tier.DISK)


def _seconds_per_pass(cost: PassCost, context_length: int) -> float | None:
    """For plain decoding in the middle of the context; None if nothing streams or a needed bandwidth is unknown."""
    return cost.seconds(1, 1, context_length // 2).total if cost.slots and cost.is_known else None


def _effect(request: PlanRequest) -> str | None:
    """What `request` would stream, and its context, in a few words; None if it does not fit."""
    outcome = _solve(request)
    if isinstance(outcome, Shortage):
        return None
    streamed = f"streams {format_size(outcome.streamed_bytes)} per pass" if outcome.slots else "nothing is streamed"
    return f"{streamed}, context of {outcome.context_length} tokens"
