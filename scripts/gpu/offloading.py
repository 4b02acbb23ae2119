"""(f) CPU offload of `accelerate` against ours: one checkpoint, one placement of its layers, one token a pass."""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from offloading.runs import Greedy, device_map

from gpu.bench import Bench, Budget
from gpu.passes import time_passes
from gpu.report import Record, missing
from loaders.checkpoint.read_spec import read_spec
from offload_runtime.generation.out_of_memory import free_unused_memory
from offload_runtime.speculation.draft_tree import DraftTree
from scheduler.plan.plan import Plan, Tier


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    if importlib.util.find_spec("accelerate") is None:
        reason = "accelerate is not installed: pip install accelerate"
        yield missing("f", "CPU offload of accelerate", "skipped", reason)
        return
    layers = bench.scale.offload_layers
    directory = bench.random(f"{layers}-layers", {**bench.scale.target, "num_hidden_layers": layers})
    text = [1 + number % 100 for number in range(bench.scale.context // 2)]
    budget.need()
    ours, token, plan = _ours(bench, directory, text)
    yield ours
    budget.need()
    yield _accelerate(bench, directory, text, plan, ours, token)


@torch.inference_mode()
def _ours(bench: Bench, directory: Path, text: Sequence[int]) -> tuple[Record, int, Plan]:
    """The record, the token after the text, and the placement."""
    cap, context = bench.scale.offload_cap, bench.scale.context
    preparation = bench.prepare(directory, dtype=bench.compute_dtype, device_memory=cap, context_length=context)
    begin = time.perf_counter()
    with bench.loaded(preparation) as models:
        loaded, target, plan = time.perf_counter() - begin, models.target, models.plan
        token = int(target.model.read(text, plan.rows)[-1].argmax())
        seconds = time_passes(target, [*text, token], DraftTree.root_only(token), bench.scale.passes)
        streamed = {"streamed_bytes": target.model.streamed_bytes}
        return _record(bench, "ours", plan, seconds=seconds, load_seconds=loaded, **streamed), token, plan


@torch.inference_mode()
def _accelerate(bench: Bench, directory: Path, text: Sequence[int], plan: Plan, ours: Record, expected: int) -> Record:
    """The same layers through transformers' own loading with a device map, which accelerate's hooks carry out."""
    from transformers import AutoModelForCausalLM

    device: str | int = 0 if bench.is_cuda else "cpu"
    places = device_map(device, [device if tier == Tier.DEVICE else "cpu" for tier in plan.tiers])
    dtype, begin = getattr(torch, bench.compute_dtype), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, device_map=places, local_files_only=True)
    loaded = time.perf_counter() - begin
    next_token = Greedy(model.eval(), model.config, bench.device)
    token = next_token(text)
    seconds = fmean(bench.seconds(partial(next_token, [token]), bench.scale.passes))
    streamed = sum(layer.nbytes for layer, tier in zip(read_spec(directory).layers, plan.tiers) if tier != Tier.DEVICE)
    del model, next_token
    free_unused_memory()
    compared = {"same_token": token == expected, "times_slower": seconds / ours["seconds"]}
    times = {"seconds": seconds, "load_seconds": loaded, "streamed_bytes": streamed}
    return _record(bench, "accelerate", plan, **times, **compared)


def _record(bench: Bench, program: str, plan: Plan, **values: Any) -> Record:
    streamed = len(plan.tiers) - plan.tiers.count(Tier.DEVICE)
    about = {"program": program, "layers": len(plan.tiers), "streamed_layers": streamed, "passes": bench.scale.passes}
    return Record("Offloading", "f", {**about, "same_token": None, "times_slower": None, **values})
