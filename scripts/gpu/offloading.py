"""(f) CPU offload of `accelerate` against ours: one checkpoint, one placement of its layers, one token a pass."""

import importlib.util
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from offloading.runs import Greedy, device_map

from gpu.bench import Bench, Budget
from gpu.passes import time_passes
from gpu.report import Record, missing
from loaders.checkpoint.read_spec import read_spec
from offload_runtime.speculation.draft_tree import DraftTree
from scheduler.plan.plan import Plan, Tier

SECTION = "f"
HOST_SHARE, DISK_SHARE = 0.4, 0.6  # of what is free, for the weights
WRITING_SHARE = 0.2  # of the section's time, for writing the checkpoint
LEAST_LAYERS = 2
WHAT = "CPU offload of accelerate"


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    if importlib.util.find_spec("accelerate") is None:
        yield missing(SECTION, WHAT, "skipped", "accelerate is not installed: pip install accelerate")
        return
    layers = _layers(bench, budget)
    if layers < LEAST_LAYERS:
        yield missing(SECTION, WHAT, "skipped", "host memory, disk or time do not allow a checkpoint of two layers")
        return
    directory = bench.random(f"{layers}-layers", {**bench.scale.target, "num_hidden_layers": layers})
    text = [1 + number % 100 for number in range(bench.scale.context // 2)]
    ours, token, plan = _ours(bench, directory, text)
    yield ours
    budget.need()
    yield _accelerate(bench, directory, text, plan, ours, token)


def _layers(bench: Bench, budget: Budget) -> int:
    """As many as host memory, disk and time allow, and the model has."""
    scale, sample = bench.scale, bench.prepare_target(tree="none")
    layer, embeddings_and_head = sample.target.spec.layers[0].disk_bytes, sample.target.spec.embeddings_and_head_bytes
    room = min(
        HOST_SHARE * sample.machine.host_available,
        DISK_SHARE * shutil.disk_usage(bench.directory).free,
        WRITING_SHARE * budget.seconds * bench.write_rate,
    )
    return min(scale.offload_layers, int(scale.target["num_hidden_layers"]), int((room - embeddings_and_head) // layer))


@torch.inference_mode()
def _ours(bench: Bench, directory: Path, text: Sequence[int]) -> tuple[Record, int, Plan]:
    """The record, the token after the text, and the placement."""
    cap, context = bench.scale.offload_cap, bench.scale.context
    how = {"dtype": bench.compute_dtype, "device_memory": cap, "context_length": context}
    preparation = bench.prepare(directory, None, tree="none", **how)
    begin = time.perf_counter()
    models = bench.load(preparation)
    try:
        loaded = time.perf_counter() - begin
        target, plan = models.target, models.plan
        token = int(target.model.read(text, plan.rows)[-1].argmax())
        seconds = time_passes(target, [*text, token], DraftTree.root_only(token), bench.scale.passes)
        record = _record(bench, "ours", plan, seconds, loaded, target.model.streamed_bytes)
    finally:
        models.close()
        bench.free()
    return record, token, plan


@torch.inference_mode()
def _accelerate(bench: Bench, directory: Path, text: Sequence[int], plan: Plan, ours: Record, expected: int) -> Record:
    """The same layers through transformers' own loading with a device map, which accelerate's hooks carry out."""
    from transformers import AutoModelForCausalLM

    device: str | int = 0 if bench.is_cuda else "cpu"
    layers = [device if tier == Tier.DEVICE else "cpu" for tier in plan.tiers]
    dtype = getattr(torch, bench.compute_dtype)
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, device_map=device_map(device, layers), local_files_only=True
    ).eval()
    loaded = time.perf_counter() - begin
    next_token = Greedy(model, model.config, bench.device)
    token = next_token(text)
    times = []
    for _ in range(1 + bench.scale.passes):
        begin = time.perf_counter()
        next_token([token])
        times.append(time.perf_counter() - begin)
    seconds = fmean(times[1:])
    streamed = sum(layer.nbytes for layer, tier in zip(read_spec(directory).layers, plan.tiers) if tier != Tier.DEVICE)
    del model, next_token
    bench.free()
    compared = {"same_token": token == expected, "times_slower": seconds / ours["seconds"]}
    return _record(bench, "accelerate", plan, seconds, loaded, streamed, **compared)


def _record(
    bench: Bench,
    program: str,
    plan: Plan,
    seconds: float,
    load_seconds: float,
    streamed_bytes: int,
    same_token: bool | None = None,
    times_slower: float | None = None,
) -> Record:
    values = {
        "program": program,
        "layers": len(plan.tiers),
        "streamed_layers": len(plan.tiers) - plan.tiers.count(Tier.DEVICE),
        "streamed_bytes": streamed_bytes,
        "seconds": seconds,
        "passes": bench.scale.passes,
        "load_seconds": load_seconds,
        "same_token": same_token,
        "times_slower": times_slower,
    }
    return Record("Offloading", SECTION, values)
