"""(c) Levels of a draft that stays on the device, by their number of nodes: as they are, and as CUDA graphs."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from gpu.bench import Bench, Budget
from gpu.report import Record
from loaders.checkpoint.spec import ModelSpec
from offload_runtime.loading.models import LoadedModels
from offload_runtime.model.cuda_graphs import CudaGraphs
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.growth import run_growths
from scheduler.plan.padding import Padding
from scheduler.plan.pass_cost import PassCost, resident_cost

SECTION = "c"
RUNS = 9


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    for name, config in bench.scale.drafts.items():
        budget.need(5.0 if bench.is_cuda else 0.0)
        directory = bench.random(name, config, distinct_layers=2)
        spec, models = _load(bench, directory, config["num_hidden_layers"])
        try:
            yield from _levels(bench, name, models, resident_cost(spec, models.plan.machine))
        finally:
            models.close()
            bench.free()


def _load(bench: Bench, directory: Path, layers: int) -> tuple[ModelSpec, LoadedModels]:
    """The draft's shape by itself, all of it on the device."""
    preparation = bench.prepare(
        directory, tree="none", context_length=bench.scale.context + max(bench.scale.widths), share_layers=layers > 2
    )
    return preparation.target.spec, bench.load(preparation)


def _levels(bench: Bench, name: str, models: LoadedModels, cost: PassCost) -> Iterator[Record]:
    model = models.target.model
    draft = Draft(model, model.vocab_size, models.plan.rows)
    text = [1] * (bench.scale.context // 2)
    run_growths([draft.reading(text)], draft.run)
    with model.unpadded():
        yield from (_level(bench, name, draft, rows, cost) for rows in bench.scale.widths)
    if bench.is_cuda:
        model.pad_passes(Padding.of(max(bench.scale.widths), models.plan.cache_rows), CudaGraphs(model.device))
        replayed = (_level(bench, name, draft, rows, cost) for rows in bench.scale.widths)
        yield from (level for level in replayed if level["graphs"])


def _level(bench: Bench, name: str, draft: Draft, rows: int, cost: PassCost) -> Record:
    padded = draft.model.padded_total
    seconds = [_one_level(bench, draft, rows) for _ in range(1 + RUNS)][1:]
    graphs = draft.model.padded_total > padded
    predicted = cost.seconds(rows, rows, bench.scale.context // 2).total
    what = {"shape": name, "rows": rows, "graphs": graphs}
    return Record(
        "DraftLevel", SECTION, {**what, "seconds": median(seconds), "runs": RUNS, "predicted_seconds": predicted}
    )


def _one_level(bench: Bench, draft: Draft, rows: int) -> float:
    """Seconds until the host has the likeliest children of `rows` siblings, as growing a tree needs them."""
    device = draft.model.device
    tokens = torch.arange(rows, device=device)
    depths = torch.ones(rows, dtype=torch.int64, device=device)
    visible = torch.eye(rows, dtype=torch.bool, device=device)
    bench.synchronize()
    begin = time.perf_counter()
    draft.run([draft.nodes(tokens, depths, visible)])[0].topk(4).indices.tolist()
    elapsed = time.perf_counter() - begin
    draft.model.cache.rollback()
    return elapsed
