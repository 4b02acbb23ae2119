"""(b) The first token after a prompt, and passes of the streamed target over trees of many sizes, beside the plan's
prediction, under caps of the device's memory."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from toolkit.link import Link, measure_link

from gpu.bench import Bench, Budget, OutOfTime
from gpu.records import FirstToken, Missing, Record, StreamedPass
from gpu.scale import caps_to_try, stands_for
from gpu.trees import made_up_tree
from loaders.checkpoint.spec import ModelSpec
from offload_runtime.errors import DoesNotFitError
from offload_runtime.generation.loading import LoadedModels
from offload_runtime.planning.planning import Preparation
from offload_runtime.speculation.draft_tree import DrawnTree
from offload_runtime.speculation.target import Target
from scheduler.machine.machine import read_machine
from scheduler.plan.plan import Plan, Tier
from scheduler.sizes import format_size

SECTION = "b"
LEAST_SECONDS = 10.0  # to load for one more cap


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    total = read_machine(bench.device).device_total
    caps = caps_to_try(bench.scale.caps, total)
    for number, cap in enumerate(caps):
        name = f"passes with the device capped to {format_size(cap)}"
        if not stands_for(cap, total):
            yield Missing(SECTION, name, "skipped", f"the device has {format_size(total)}")
            continue
        try:
            own = budget.until(1 / (len(caps) - number))
            own.need(LEAST_SECONDS if bench.is_cuda else 0.0)
            yield from _capped(bench, cap, own)
        except OutOfTime as error:
            yield Missing(SECTION, name, "out of time", str(error))


def _target(bench: Bench) -> Path:
    return bench.random(bench.scale.target_name, bench.scale.target, bench.scale.distinct_layers)


def _capped(bench: Bench, cap: int, budget: Budget) -> Iterator[Record]:
    """Load once, with room for the largest tree that fits, and time all sizes up to it."""
    preparation = _with_largest_tree(bench, cap)
    begin = time.perf_counter()
    models = bench.load(preparation)
    try:
        cap = min(cap, preparation.plan.device_budget)
        bench.note(f"  {format_size(cap)}: loaded in {time.perf_counter() - begin:.1f} s")
        yield from _all_sizes(bench, preparation, models, cap, budget)
    finally:
        models.close()
        bench.free()


def _with_largest_tree(bench: Bench, cap: int) -> Preparation:
    scale, refused = bench.scale, None
    for size in sorted(scale.nodes, reverse=True):
        try:
            return bench.prepare(
                _target(bench),
                bench.random("planned-draft", {**scale.planned_draft, "vocab_size": scale.target["vocab_size"]}),
                device_memory=cap,
                tree="sequoia",
                tree_size=size,
                context_length=scale.context,
                share_layers=scale.distinct_layers < scale.target["num_hidden_layers"],
            )
        except DoesNotFitError as error:
            refused = error
    assert refused is not None
    raise refused


def _all_sizes(
    bench: Bench, preparation: Preparation, models: LoadedModels, cap: int, budget: Budget
) -> Iterator[Record]:
    scale, target, plan = bench.scale, models.target, models.plan
    text = [1] * (scale.context // 2)
    begin = time.perf_counter()
    target.model.read(text[:-1], plan.rows).argmax(-1).tolist()
    first_seconds = time.perf_counter() - begin
    link = measure_link(plan, preparation.target.checkpoint.files, direct=preparation.options.io == "direct")
    slowest = 0.0
    for nodes in (size for size in scale.nodes if size <= plan.tree_size):
        budget.need(slowest * (scale.passes + 2))
        drawn = made_up_tree(nodes, text[-1], scale.target["vocab_size"])
        begin = time.perf_counter()
        predicted = _predicted(preparation.target.spec, plan, nodes, len(text))
        record = _measured(bench, models, link, cap, text, drawn, predicted)
        slowest = max(slowest, (time.perf_counter() - begin) / (scale.passes + 2))
        bench.note(f"  {format_size(cap)}, {nodes} nodes: {record.seconds:.3f} s, {record.ratio:.3f} x the roofline")
        yield record
        if nodes == 1:
            passes = -(-(len(text) - 1) // plan.rows)
            yield FirstToken(SECTION, cap, len(text) - 1, passes, first_seconds, record.seconds)


def _predicted(spec: ModelSpec, plan: Plan, nodes: int, context: int) -> float | None:
    """Seconds of a pass by the plan's cost model; None where a bandwidth that counts is not known."""
    cost = plan.target_cost(spec)
    return cost.seconds(nodes, nodes, context).total if cost.is_known else None


def _measured(
    bench: Bench,
    models: LoadedModels,
    link: Link,
    cap: int,
    text: list[int],
    drawn: DrawnTree,
    predicted_seconds: float | None,
) -> StreamedPass:
    target, plan = models.target, models.plan
    seconds = time_passes(target, text, drawn, bench.scale.passes)
    with target.model.without_streaming():
        compute = time_passes(target, text, drawn, 1)
    streamed = target.model.streamed_bytes
    return StreamedPass(
        SECTION,
        shape=bench.scale.target_name,
        cap=cap,
        resident_layers=plan.tiers.count(Tier.DEVICE),
        streamed_layers=len(plan.tiers) - plan.tiers.count(Tier.DEVICE),
        nodes=drawn.tree.size,
        streamed_bytes=streamed,
        seconds=seconds,
        passes=bench.scale.passes,
        link_bytes_per_second=_rate(plan, link),
        link_seconds=link.pass_seconds(plan, streamed) if streamed else None,
        compute_seconds=compute,
        predicted_seconds=predicted_seconds,
        peak_device_bytes=models.memory.peak_bytes,
    )


def _rate(plan: Plan, link: Link) -> float | None:
    """The bandwidth that most of the plan's streamed bytes come with."""
    return link.disk if plan.device == "cpu" or 2 * plan.disk_bytes > plan.streamed_bytes else link.pinned


def time_passes(target: Target, text: list[int], drawn: DrawnTree, count: int) -> float:
    """Mean seconds of `count` passes in a row, after one that is not counted; each ends when the host knows it has.

    As in decoding, the likeliest tokens come back to the host; nothing is kept of a pass.
    """
    times = []
    for _ in range(1 + count):
        begin = time.perf_counter()
        target.score(text, drawn).argmax(-1).tolist()
        target.model.cache.rollback()
        times.append(time.perf_counter() - begin)
    return fmean(times[1:])
