"""(c) Levels of a draft that stays on the device, by their number of nodes: as they are, and as CUDA graphs."""

from collections.abc import Iterator
from statistics import median

import torch

from gpu.bench import Bench, Budget
from gpu.report import Record
from offload_runtime.loading.models import LoadedModels
from offload_runtime.model.cuda_graphs import CudaGraphs
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.growth import run_growths
from scheduler.plan.padding import Padding
from scheduler.plan.pass_cost import PassCost, resident_cost

RUNS = 9


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    room = bench.scale.context + max(bench.scale.widths)
    for name, config in bench.scale.drafts.items():
        budget.need(5.0 if bench.is_cuda else 0.0)
        directory, share = bench.random(name, config, distinct_layers=2), config["num_hidden_layers"] > 2
        preparation = bench.prepare(directory, context_length=room, share_layers=share)
        with bench.loaded(preparation) as models:
            yield from _levels(bench, name, models, resident_cost(preparation.target.spec, models.plan.machine))


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
    """Until the host has the likeliest children of `rows` siblings, as growing a tree needs them."""
    device, padded = draft.model.device, draft.model.padded_total
    tokens, depths = torch.arange(rows, device=device), torch.ones(rows, dtype=torch.int64, device=device)
    visible = torch.eye(rows, dtype=torch.bool, device=device)

    def one_level() -> None:
        draft.run([draft.nodes(tokens, depths, visible)])[0].topk(4).indices.tolist()
        draft.model.cache.rollback()

    seconds = median(bench.seconds(one_level, RUNS))
    predicted = cost.seconds(rows, rows, bench.scale.context // 2).total
    what = {"shape": name, "rows": rows, "graphs": draft.model.padded_total > padded}
    return Record("DraftLevel", "c", {**what, "seconds": seconds, "runs": RUNS, "predicted_seconds": predicted})
