"""The predicted gain from the draft, part by part, and from quantized weights, before anything is loaded.

Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import replace

from loaders.checkpoint.low_bit_copy import what_streams
from loaders.checkpoint.spec import ITEMSIZE, ModelSpec
from loaders.quantize.recipe import BITS
from loaders.sizes import format_size
from offload_runtime.planning.expected_acceptance import ExpectedAcceptance
from offload_runtime.planning.planning import Preparation
from offload_runtime.planning.prediction import Prediction, is_predictable, predict
from offload_runtime.planning.read_models import smaller_targets
from offload_runtime.start import command_name
from scheduler.plan.plan import Plan, Tier, find_plan
from sequoia_tree.choice.choose import reach_by_size

_MEASURED = "measured for this pair"
_PUBLISHED = "published for Llama-3, by the draft's size"
_PUBLISHED_OF_HEADS = "published for DeepSeek-V3's head"
_MEASURED_OF_COPIES = "measured for a copy of Gemma 3 270M"


def forecast(preparation: Preparation) -> Iterator[str]:
    """Lines for the end of a plan."""
    yield from filter(None, (preparation.machine.note, preparation.link_note, preparation.draft_note))
    if preparation.acceptance is not None and preparation.plan.tree_depth:
        yield from _with_draft(preparation, preparation.acceptance)
    yield from _what_crosses(preparation)
    yield from _texts_together(preparation)
    yield from _estimates(preparation.plan)
    yield from _smaller_weights(preparation)


def _with_draft(preparation: Preparation, acceptance: ExpectedAcceptance) -> Iterator[str]:
    plan, target, draft = preparation.plan, preparation.target.spec, preparation.draft
    by_child = acceptance.verified_by(preparation.options.rule)
    published = _PUBLISHED_OF_HEADS if draft and draft.head else _PUBLISHED
    if draft and draft.spec.copy_bits:
        published = _MEASURED_OF_COPIES
    source = _MEASURED if acceptance.measured else published
    if draft and is_predictable(plan, target):
        link = "link" if plan.device == "cuda" else "disk"
        yield from _parts(predict(plan, target, draft.spec, by_child), link, preparation.options.rule)
        yield f"Acceptance: {source}."
    else:
        tokens = reach_by_size(by_child, plan.tree_size, plan.tree_depth)[-1]
        yield f"Expected: {tokens:.1f} tokens per pass with a static tree, by the acceptance {source}."
        if plan.seconds_per_pass:
            yield f"With the draft about {_pace(tokens / plan.seconds_per_pass)} tokens/s, less the time of drafting."
    if not acceptance.measured:
        command = command_name("sequoia-measure-acceptance", "offload_runtime.measure_acceptance")
        yield f"Not measured for this pair yet: {command}"


def _parts(prediction: Prediction, link: str, rule: str) -> Iterator[str]:
    """The seconds per token and their parts. link: the name of what streams the layers. rule: of verification."""
    tree, one_pass = prediction.tree, prediction.tree_pass
    if not tree.depth:
        yield "With the draft: no faster here, since a tree costs more time than it saves; plain decoding it is."
        return
    seconds = prediction.seconds_per_token
    yield f"With the draft: {_seconds(seconds)} s per token, {_pace(1 / seconds)} tokens/s, predicted from"
    yield f"  {tree.tokens_per_pass:.1f} tokens per pass of a static tree of {tree.size} nodes, verified by {rule}"
    works = {"disk": one_pass.disk, link: one_pass.link, "computing": one_pass.compute}
    parts = [f"{name} {_seconds(value)} s" for name, value in works.items() if value]
    at_once = len(parts) > 1
    yield f"  {_seconds(one_pass.total)} s per pass: {_listed(parts)}{', side by side' * at_once}"
    drafting = f"{_seconds(prediction.draft_seconds)} s of drafting in {tree.depth} level{'s' * (tree.depth > 1)}"
    yield f"  {drafting}{f', while the {link} goes on' * at_once}"
    if prediction.verification_seconds:
        yield f"  {_seconds(prediction.verification_seconds)} s of verifying"
    if at_once:
        yield f"  the {link} idles {prediction.link_idle:.0%} of the time, the device {prediction.device_idle:.0%}"


def _what_crosses(preparation: Preparation) -> Iterator[str]:
    """Which tensors cross the link as rests alone, and which whole, where the target drafts for itself."""
    bits = preparation.draft.spec.copy_bits if preparation.draft else None
    if bits and preparation.plan.slots:
        yield from what_streams(preparation.target.spec, preparation.target.checkpoint, bits)


def _texts_together(preparation: Preparation) -> Iterator[str]:
    """A line on the pace of several texts, if the plan has room for them."""
    plan, target, draft = preparation.plan, preparation.target.spec, preparation.draft
    if plan.texts == 1 or not is_predictable(plan, target):
        return
    acceptance = preparation.acceptance
    by_child = acceptance.verified_by(preparation.options.rule) if acceptance else ()
    draft_spec = draft.spec if draft else None
    alone, together = (predict(plan, target, draft_spec, by_child, texts) for texts in (1, plan.texts))
    each, total = 1 / together.seconds_per_token, together.tokens_per_second
    yield (
        f"{plan.texts} texts at once: {_pace(total)} tokens/s together, {_pace(each)} each; one text alone "
        f"{_pace(alone.tokens_per_second)}."
    )


_ESTIMATES = {"link_bandwidth": "the link", "flops": "computing", "memory_bandwidth": "the GPU's memory"}


def _estimates(plan: Plan) -> Iterator[str]:
    names = [name for field, name in _ESTIMATES.items() if field in plan.machine.estimated]
    if names:
        yield f"Estimated from data sheets, not measured: the speed of {_listed(names)}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _smaller_weights(preparation: Preparation) -> Iterator[str]:
    """Lines on quantized weights of the same model, if these make a slower tier unnecessary."""
    plan, draft = preparation.plan, preparation.draft
    if not plan.slots or preparation.target.spec.is_packed:
        return
    limits = replace(
        preparation.limits,
        tree_size=plan.tree_size,
        nodes=plan.nodes,
        context_length=plan.context_length,
        parallel=plan.texts,
        kv=plan.kv,
    )

    def gain(packed: ModelSpec) -> str | None:
        smaller = find_plan(packed, draft.spec if draft else None, plan.machine, limits)
        step = smaller and _gain(plan, smaller)
        return f"({format_size(smaller.weight_bytes)} of weights) would {step}." if smaller and step else None

    # Finding out what would not be quantized takes as long as the plan itself, so it is done only if it can matter.
    worth_it = [name for name, bits in BITS.items() if gain(_at_least(preparation.target.spec, bits))]
    for flags, packed in smaller_targets(preparation.options, preparation.machine, worth_it):
        if line := gain(packed):
            yield f"{flags} {line}"


def _at_least(spec: ModelSpec, bits: int) -> ModelSpec:
    """A lower bound of `spec` quantized to `bits` per weight: all weights, without scales."""
    shrink = bits / (8 * ITEMSIZE[spec.dtype])
    layers = (
        replace(
            layer,
            nbytes=int(layer.nbytes * shrink),
            disk_bytes=int(layer.disk_bytes * shrink),
            expert_bytes=int(layer.expert_bytes * shrink),
            expert_disk_bytes=int(layer.expert_disk_bytes * shrink),
        )
        for layer in spec.layers
    )
    return replace(spec, layers=tuple(layers))


def _gain(plan: Plan, smaller: Plan) -> str | None:
    """The tier that smaller weights avoid, in words; None if they only stream less."""
    if not smaller.slots:
        return f"fit {'the GPU' if plan.device == 'cuda' else 'into memory'} whole"
    if Tier.DISK in plan.tiers and Tier.DISK not in smaller.tiers:
        pace = f": about {_seconds(smaller.seconds_per_pass)} s per pass" if smaller.seconds_per_pass else ""
        return f"fit into memory instead of coming from disk{pace}"
    return None


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _pace(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
