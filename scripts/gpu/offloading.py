"""(f) CPU offload of `accelerate` against ours: one checkpoint, one placement of its layers, one token a pass."""

import importlib.util
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gpu.bench import Bench, Budget
from gpu.passes import time_passes
from gpu.records import Missing, Offloading, Record
from loaders.checkpoint.read_spec import read_spec
from offload_runtime.speculation.draft_tree import DrawnTree
from scheduler.plan.plan import Plan, Tier

SECTION = "f"
HOST_SHARE, DISK_SHARE = 0.4, 0.6  # of what is free, for the weights
WRITING_SHARE = 0.2  # of the section's time, for writing the checkpoint
LEAST_LAYERS = 2
WHAT = "CPU offload of accelerate"


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    if importlib.util.find_spec("accelerate") is None:
        yield Missing(SECTION, WHAT, "skipped", "accelerate is not installed: pip install accelerate")
        return
    layers = _layers(bench, budget)
    if layers < LEAST_LAYERS:
        yield Missing(SECTION, WHAT, "skipped", "host memory, disk or time do not allow a checkpoint of two layers")
        return
    directory = bench.random(f"{layers}-layers", {**bench.scale.target, "num_hidden_layers": layers})
    text = [1 + number % 100 for number in range(bench.scale.context // 2)]
    ours, token, plan = _ours(bench, directory, text)
    yield ours
    budget.need()
    yield _accelerate(bench, directory, text, plan, ours, token)


def _layers(bench: Bench, budget: Budget) -> int:
    """As many as host memory, disk and time allow, and the model has."""
    scale = bench.scale
    sample = bench.prepare(
        bench.random(scale.target_name, scale.target, scale.distinct_layers),
        tree="none",
        share_layers=scale.distinct_layers < scale.target["num_hidden_layers"],
    )
    layer, outer = sample.target.spec.units[0].disk_bytes, sample.target.spec.outer_bytes
    room = min(
        HOST_SHARE * sample.machine.host_available,
        DISK_SHARE * shutil.disk_usage(bench.directory).free,
        WRITING_SHARE * budget.seconds * bench.write_rate,
    )
    return min(scale.offload_layers, scale.target["num_hidden_layers"], int((room - outer) // layer))


@torch.inference_mode()
def _ours(bench: Bench, directory: Path, text: Sequence[int]) -> tuple[Offloading, int, Plan]:
    """The record, the token after the text, and the placement."""
    preparation = bench.prepare(
        directory,
        tree="none",
        dtype=bench.compute_dtype,
        device_memory=bench.scale.offload_cap,
        context_length=bench.scale.context,
    )
    begin = time.perf_counter()
    models = bench.load(preparation)
    try:
        loaded = time.perf_counter() - begin
        target, plan = models.target, models.plan
        token = int(target.model.read(text, plan.rows)[-1].argmax())
        seconds = time_passes(target, [*text, token], DrawnTree.root_only(token), bench.scale.passes)
        record = _record("ours", plan, seconds, bench.scale.passes, loaded, target.model.streamed_bytes)
    finally:
        models.close()
        bench.free()
    return record, token, plan


@torch.inference_mode()
def _accelerate(
    bench: Bench, directory: Path, text: Sequence[int], plan: Plan, ours: Offloading, expected: int
) -> Offloading:
    """The same layers through transformers' own loading with a device map, which accelerate's hooks carry out."""
    from transformers import AutoModelForCausalLM, DynamicCache

    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, bench.compute_dtype), device_map=_device_map(bench, plan), local_files_only=True
    ).eval()
    loaded = time.perf_counter() - begin
    cache = DynamicCache(config=model.config)
    token = _next_token(model, cache, text, bench.device)
    times = []
    for _ in range(1 + bench.scale.passes):
        begin = time.perf_counter()
        _next_token(model, cache, [token], bench.device)
        times.append(time.perf_counter() - begin)
    seconds = fmean(times[1:])
    streamed = sum(unit.nbytes for unit, tier in zip(read_spec(directory).units, plan.tiers) if tier != Tier.DEVICE)
    del model
    bench.free()
    return _record(
        "accelerate", plan, seconds, bench.scale.passes, loaded, streamed, token == expected, seconds / ours.seconds
    )


def _next_token(model: Any, cache: Any, tokens: Sequence[int], device: str) -> int:
    """The likeliest token after what the cache holds and `tokens`."""
    ids = torch.tensor([list(tokens)], device=device)
    return int(model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())


def _device_map(bench: Bench, plan: Plan) -> dict[str, str | int]:
    """Our placement in accelerate's words."""
    device: str | int = 0 if bench.is_cuda else "cpu"
    layers = {
        f"model.layers.{index}": device if tier == Tier.DEVICE else "cpu" for index, tier in enumerate(plan.tiers)
    }
    outer = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return {**dict.fromkeys(outer, device), **layers}


def _record(
    program: str,
    plan: Plan,
    seconds: float,
    passes: int,
    load_seconds: float,
    streamed_bytes: int,
    same_token: bool | None = None,
    times_slower: float | None = None,
) -> Offloading:
    layers = len(plan.tiers)
    return Offloading(
        SECTION,
        program=program,
        layers=layers,
        streamed_layers=layers - plan.tiers.count(Tier.DEVICE),
        streamed_bytes=streamed_bytes,
        seconds=seconds,
        passes=passes,
        load_seconds=load_seconds,
        same_token=same_token,
        times_slower=times_slower,
    )
