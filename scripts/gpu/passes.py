"""(a) Bandwidths. (b) The first token after a prompt, and passes of the streamed target over trees of many sizes.

Passes and first tokens are set against predictions, under several caps of the device's memory.
"""

import time
from collections.abc import Iterator
from statistics import fmean

import numpy as np
import torch
from toolkit.link import Bandwidths, copy_bandwidths, measure_link

from gpu.bench import Bench, Budget, OutOfTime
from gpu.report import Record, missing
from gpu.scale import caps_to_try, stands_for
from loaders.checkpoint.spec import ModelSpec
from loaders.io.direct import measure_read_bandwidth
from loaders.sizes import format_size
from offload_runtime.errors import DoesNotFitError
from offload_runtime.loading.models import LoadedModels
from offload_runtime.planning.planning import Preparation
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.target import Target
from scheduler.machine.machine import read_machine
from scheduler.plan.plan import Tier
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE, optimal_tree

LEAST_SECONDS = 10.0  # to load for one more cap


def bandwidths(bench: Bench, budget: Budget) -> Iterator[Record]:
    """(a) How fast bytes come to the device, and from disk to host memory."""
    rates = copy_bandwidths(torch.device(bench.device)) if bench.is_cuda else (None, None)
    for kind, rate in zip(("pinned", "pageable"), rates):
        path = f"host to device, {kind}"
        why = f"no {kind} memory could be copied from" if bench.is_cuda else "there is no GPU"
        yield _bandwidth(path, rate) if rate else missing("a", path, "skipped", why)
    measured = measure_read_bandwidth(sorted(bench.target().glob("*.safetensors")), cached=False)
    how = "past the page cache" if measured.direct else "through the page cache, which this filesystem cannot avoid"
    yield _bandwidth(f"disk to host, {how}", measured.bytes_per_second)


def _bandwidth(path: str, rate: float) -> Record:
    return Record("Bandwidth", "a", {"path": path, "bytes_per_second": rate})


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    total = read_machine(bench.device).device_total
    caps = caps_to_try(bench.scale.caps, total)
    for number, cap in enumerate(caps):
        name = f"passes with the device capped to {format_size(cap)}"
        if not stands_for(cap, total):
            yield missing("b", name, "skipped", f"the device has {format_size(total)}")
            continue
        try:
            own = budget.until(1 / (len(caps) - number))
            own.need(LEAST_SECONDS if bench.is_cuda else 0.0)
            preparation = with_largest_tree(bench, cap)
            with bench.loaded(preparation) as models:
                yield from _all_sizes(bench, preparation, models, min(cap, preparation.plan.device_budget), own)
        except OutOfTime as error:
            yield missing("b", name, "out of time", str(error))


def with_largest_tree(bench: Bench, cap: int) -> Preparation:
    """A plan with room for the largest tree that fits."""
    scale, most = bench.scale, sorted(bench.scale.nodes)
    draft = bench.random("planned-draft", {**scale.planned_draft, "vocab_size": scale.target["vocab_size"]})
    options = {"device_memory": cap, "context_length": scale.context, "tree": "sequoia"}
    shared = scale.distinct_layers < scale.target["num_hidden_layers"]
    while True:
        try:
            return bench.prepare(bench.target(), draft, tree_size=most[-1], share_layers=shared, **options)
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
            yield Record("FirstToken", "b", {"cap": cap, **read, "seconds": first_seconds, "pass_seconds": took})


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
    mostly_disk = plan.device == "cpu" or 2 * plan.disk_bytes > plan.streamed_bytes
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
        "link_bytes_per_second": link.disk if mostly_disk else link.pinned,
        "link_seconds": link_seconds,
        "compute_seconds": compute,
        "predicted_seconds": predicted,
        "peak_device_bytes": models.memory.peak_bytes,
        "roofline_seconds": roofline,
        "ratio": seconds / roofline,
        "predicted_ratio": predicted / seconds if predicted else None,
    }
    return Record("StreamedPass", "b", values)


def made_up_tree(nodes: int, root: int, vocab_size: int) -> DraftTree:
    """The best tree of so many nodes for the published acceptance; its tokens mean nothing."""
    tree = optimal_tree(DEFAULT_ACCEPTANCE, nodes)
    tokens = np.random.default_rng(0).integers(vocab_size, size=tree.size).tolist()
    unknown = np.full(tree.size, -1)
    return DraftTree(tree, [root, *tokens[1:]], 1, unknown, None, unknown)


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
