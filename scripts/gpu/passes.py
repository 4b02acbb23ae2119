"""(b) The first token after a prompt, and passes of the streamed target over trees of many sizes, against predictions.

Both under several caps of the device's memory.
"""

import time
from collections.abc import Iterator
from statistics import fmean

from toolkit.link import Bandwidths, measure_link

from gpu.bench import Bench, Budget, OutOfTime
from gpu.report import Record, missing
from gpu.scale import caps_to_try, stands_for
from gpu.trees import made_up_tree
from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import format_size
from offload_runtime.errors import DoesNotFitError
from offload_runtime.loading.models import LoadedModels
from offload_runtime.planning.planning import Preparation
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.target import Target
from scheduler.machine.machine import read_machine
from scheduler.plan.plan import Plan, Tier

SECTION = "b"
LEAST_SECONDS = 10.0  # to load for one more cap


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    total = read_machine(bench.device).device_total
    caps = caps_to_try(bench.scale.caps, total)
    for number, cap in enumerate(caps):
        name = f"passes with the device capped to {format_size(cap)}"
        if not stands_for(cap, total):
            yield missing(SECTION, name, "skipped", f"the device has {format_size(total)}")
            continue
        try:
            own = budget.until(1 / (len(caps) - number))
            own.need(LEAST_SECONDS if bench.is_cuda else 0.0)
            yield from _capped(bench, cap, own)
        except OutOfTime as error:
            yield missing(SECTION, name, "out of time", str(error))


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
    scale, most = bench.scale, sorted(bench.scale.nodes)
    draft = bench.random("planned-draft", {**scale.planned_draft, "vocab_size": scale.target["vocab_size"]})
    limits = {"device_memory": cap, "context_length": scale.context, "tree": "sequoia"}
    while True:
        try:
            return bench.prepare_target(draft, tree_size=most[-1], **limits)
        except DoesNotFitError:
            if not most[1:]:
                raise
            most.pop()


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
        record = _measured(bench, preparation.target.spec, models, link, cap, text, drawn)
        slowest = max(slowest, (time.perf_counter() - begin) / (scale.passes + 2))
        took, ratio = record["seconds"], record["ratio"]
        bench.note(f"  {format_size(cap)}, {nodes} nodes: {took:.3f} s, {ratio:.3f} x the roofline")
        yield record
        if nodes == 1:
            read = {"prompt_tokens": len(text) - 1, "passes": -(-(len(text) - 1) // plan.rows)}
            first = {"cap": cap, **read, "seconds": first_seconds, "pass_seconds": took}
            yield Record("FirstToken", SECTION, first)


def _measured(
    bench: Bench, spec: ModelSpec, models: LoadedModels, link: Bandwidths, cap: int, text: list[int], drawn: DraftTree
) -> Record:
    """Time passes over one tree, and what bounds them; predicted by the plan's cost model before they run."""
    target, plan, nodes = models.target, models.plan, drawn.tree.size
    cost, resident = plan.target_cost(spec), plan.tiers.count(Tier.DEVICE)
    predicted = cost.seconds(nodes, nodes, len(text)).total if cost.is_known else None
    seconds = time_passes(target, text, drawn, bench.scale.passes)
    with target.model.without_streaming():
        compute = time_passes(target, text, drawn, 1)
    streamed = target.model.streamed_bytes
    link_seconds = link.pass_seconds(plan, streamed) if streamed else None
    roofline = max(link_seconds or 0.0, compute)
    values = {
        "shape": bench.scale.target_name,
        "cap": cap,
        "layers": len(plan.tiers),
        "resident_layers": resident,
        "streamed_layers": len(plan.tiers) - resident,
        "nodes": nodes,
        "streamed_bytes": streamed,
        "seconds": seconds,
        "passes": bench.scale.passes,
        "link_bytes_per_second": _rate(plan, link),
        "link_seconds": link_seconds,
        "compute_seconds": compute,
        "predicted_seconds": predicted,
        "peak_device_bytes": models.memory.peak_bytes,
        "roofline_seconds": roofline,
        "ratio": seconds / roofline,
        "predicted_ratio": predicted / seconds if predicted else None,
    }
    return Record("StreamedPass", SECTION, values)


def _rate(plan: Plan, link: Bandwidths) -> float | None:
    """The bandwidth that most of the plan's streamed bytes come with."""
    return link.disk if plan.device == "cpu" or 2 * plan.disk_bytes > plan.streamed_bytes else link.pinned


def time_passes(target: Target, text: list[int], drawn: DraftTree, count: int) -> float:
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
