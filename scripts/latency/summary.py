"""What is said beside the table: what runs on what, how far a pass is from what is possible, what to make of it."""

import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version

import torch

from latency.measure import WARM_UP_TOKENS, Workload
from latency.records import Measurement, percentile
from latency.report import write_bytes, write_seconds
from scheduler.plan.plan import Plan, Tier

RESIDENT_NOTE = (
    "Nothing is streamed: a tree is made for passes that wait for the link. --device-memory SIZE lets layers stream."
)
LOOPS_NOTE = "The demonstration's greedy text soon repeats itself and is easy to guess; see --temperature 0.7 as well."
RANDOM_NOTE = "Random weights: tokens per pass and tokens per second mean nothing, the seconds of passes and drafts do."
ROUNDING_NOTE = "In {dtype} a pass over a tree rounds differently than one over a token: outputs are equal up to ties."


def heading(plan: Plan, stored_dtype: str, workload: Workload) -> Iterator[str]:
    """What runs on what."""
    names = plan.model if plan.draft is None else f"{plan.model} drafted by {plan.draft}"
    yield f"{names}: weights in {stored_dtype}, computed in {plan.dtype}"
    versions = f"torch {version('torch')}, transformers {version('transformers')}, Python {platform.python_version()}"
    threads = f"{plan.machine.cores} cores, {torch.get_num_threads()} threads"
    yield f"{plan.device_name}, {threads}; {versions}, {platform.system()}"
    temperature = workload.sampling["temperature"]
    seeds = "fresh seeds" if workload.seed is None else f"seeds from {workload.seed}"
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}, {seeds}"
    yield (
        f"{len(workload.prompts)} prompts x {workload.repeats} repeats, at most {workload.max_new_tokens} new tokens, "
        f"{how}; not counted: {workload.warmup} warm-up x {min(WARM_UP_TOKENS, workload.max_new_tokens)} tokens"
    )


def sharing(layers: int, distinct_layers: int) -> str:
    """What made-up weights that repeat mean."""
    return (
        f"{layers} layers share {distinct_layers} on disk and in host memory: the same bytes cross the link as with "
        f"{layers} different ones"
    )


def mode_lines(measurement: Measurement) -> Iterator[str]:
    """What streamed, how fast the link is, and how far a pass is from what the machine can do."""
    m, plan = measurement, measurement.plan
    streamed = len(plan.tiers) - plan.tiers.count(Tier.DEVICE)
    if not streamed:
        yield f"{m.mode}: all {len(plan.tiers)} layers stay on the device, nothing is streamed"
        return
    yield f"{m.mode}: {streamed} of {len(plan.tiers)} layers streamed {_origin(m)}; {_link(m)}"
    if m.link_seconds and m.compute_seconds:
        yield (
            f"  streaming alone {write_seconds(m.link_seconds)} s, computing alone {write_seconds(m.compute_seconds)} "
            f"s; the median pass takes {m.limit_ratio:.2f} x the larger of the two"
        )


def compare(plain: Measurement, tree: Measurement, greedy: bool) -> str:
    """Whether both modes wrote the same tokens."""
    if not greedy:
        return "sampled"
    differing = sum(a.token_ids != b.token_ids for a, b in zip(plain.replies, tree.replies, strict=True))
    return f"{differing}/{len(plain.replies)} differ" if differing else "equal"


def speedup(plain: Measurement, tree: Measurement) -> float | None:
    """Plain seconds per token over those of trees, medians."""
    slow, fast = (percentile([reply.seconds_per_token for reply in m.replies], 50) for m in (plain, tree))
    return slow / fast if slow and fast else None


def remarks(tree: Measurement, gain: float | None, outputs: str, random: bool, demonstration: bool) -> Iterator[str]:
    """What to make of the tree's figures."""
    if gain:
        yield f"tree: {gain:.2f} x the tokens per second of plain decoding; outputs: {_explained(outputs)}"
    if not tree.plan.slots:
        yield RESIDENT_NOTE
    if random:
        yield RANDOM_NOTE
    if demonstration and outputs != "sampled":
        yield LOOPS_NOTE
    if "differ" in outputs and tree.plan.dtype != "float32":
        yield ROUNDING_NOTE.format(dtype=tree.plan.dtype)


def _explained(outputs: str) -> str:
    if outputs == "sampled":
        return "not compared: sampled"
    return "equal, token for token" if outputs == "equal" else f"{outputs} from plain decoding"


def _origin(m: Measurement) -> str:
    origins = []
    if Tier.HOST in m.plan.tiers:
        origins.append("from host memory")
    if Tier.DISK in m.plan.tiers:
        origins.append(f"from disk {'past' if m.direct else 'through'} the page cache")
    return " and ".join(origins)


def _link(m: Measurement) -> str:
    rates = {name: rate for name, rate in asdict(m.link).items() if rate}
    measured = ", ".join(f"{name} {write_bytes(rate)}/s" for name, rate in rates.items())
    return f"{measured} (the most of {len(m.links)} measurements)" if measured else "link not measured"
