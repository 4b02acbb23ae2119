"""Predictions for usual models on a machine, made by the planner from their shapes alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loaders.checkpoint.random_weights import SHAPES, described_checkpoint
from loaders.checkpoint.read_spec import read_spec
from loaders.checkpoint.spec import ModelSpec
from loaders.quantize import lossless_recipe
from loaders.sizes import format_size
from offload_runtime.planning.best_plan import best_plan
from offload_runtime.planning.expected_acceptance import assumed_for
from offload_runtime.planning.prediction import predict
from offload_runtime.planning.quantized_directory import recipe_of
from scheduler.errors import DoesNotFitError
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, Plan

# Models of three sizes, and a small one with the same tokens.
USUAL = {"llama-3-8b": "llama-3.2-1b", "qwen2.5-32b": "qwen2.5-0.5b", "llama-3-70b": "llama-3.2-1b"}
FORMS = (None, "int4")
CONTEXT = Limits(context_length=4096)


def predictions(machine: Machine, dtype: str) -> Iterator[dict[str, Any]]:
    """For every usual model, as published and quantized, with its draft: where it lies and how fast it decodes."""
    for name, draft_name in USUAL.items():
        draft = spec_of(draft_name, None, dtype)
        for form in FORMS:
            yield {
                "model": name,
                "weights": form or "bfloat16",
                **_prediction(spec_of(name, form, dtype), draft, machine),
            }


def spec_of(shape: str, form: str | None, dtype: str, code_bits: int = lossless_recipe.BITS) -> ModelSpec:
    """A known shape in bfloat16, or packed ("int4", "lossless"), computed in `dtype`. Nothing is written or read.

    Only one layer is examined; the others are like it. code_bits: of codes without loss.
    """
    count = SHAPES[shape]["num_hidden_layers"]
    checkpoint, config = described_checkpoint({**SHAPES[shape], "num_hidden_layers": 1}, Path(shape))
    if form is not None:
        packed = recipe_of(form, checkpoint, config, code_bits)
        checkpoint, config = packed.checkpoint(Path(shape)), packed.config(config)
    spec = read_spec(Path(shape), dtype, checkpoint, config)
    (layer,) = spec.layers
    at = [(Path(shape), index) for index in range(count)]  # distinct locations: no two layers share bytes
    return replace(
        spec,
        name=shape,
        layers=tuple(replace(layer, stored_at=each) for each in at),
        disk_bytes=spec.disk_bytes + (count - 1) * layer.disk_bytes,
        kv_bytes_per_token=count * spec.kv_bytes_per_token,
        kv_heads=count * spec.kv_heads,
    )


def _prediction(target: ModelSpec, draft: ModelSpec, machine: Machine) -> dict[str, Any]:
    acceptance = assumed_for(draft).verified_by("traversal")
    try:
        plan = best_plan(target, draft, machine, CONTEXT, acceptance)
    except DoesNotFitError:
        return {"place": "does not fit"}
    cost = plan.target_cost(target)
    if not (cost.is_known and cost.knows_computing):
        return {"place": _place(plan), "speed": "not predicted: a speed is not known"}
    foreseen = predict(plan, target, draft, acceptance)
    return {
        "place": _place(plan),
        "plain_tokens_per_second": 1 / foreseen.plain.total,
        "tree_tokens_per_second": 1 / foreseen.seconds_per_token,
        "nodes": foreseen.tree.size,
        "estimated": list(machine.estimated),
    }


def _place(plan: Plan) -> str:
    return f"streams {format_size(plan.streamed_bytes)} a pass" if plan.slots else "resident"
