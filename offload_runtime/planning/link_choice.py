"""`--link auto`: whether weights cross the link packed without loss, by what a pass then takes. Imports no torch.

Packed, 0.7 of the bytes cross, and every pass restores all bits. Both are predicted side by side with the speeds of
this machine: a GPU restores them as fast as it reads its memory; a processor beside a quick disk is slower than that.
"""

from dataclasses import dataclass, replace

from loaders.checkpoint.low_bit_copy import COPIES, with_resident_codes
from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import format_size
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.options.run_options import LINKS, PACKED_LINK, PLAIN_LINK, Options
from offload_runtime.planning.kv_choice import fitting_plan
from offload_runtime.planning.read_models import ModelFiles, read_target
from scheduler.machine.machine import Machine
from scheduler.machine.measurements import read_bandwidth
from scheduler.plan.plan import Limits, Tier


@dataclass(frozen=True)
class LinkChoice:
    """link: "plain" or "packed". note: one line for the user, where the planner chose."""

    link: str
    note: str | None = None


def choose_link(options: Options, target: ModelFiles, machine: Machine, limits: Limits) -> LinkChoice:
    """How the weights of `target`, which is not packed, cross the link. machine: with all speeds that are known."""
    if options.quantize or options.adapter or options.share_layers:
        return _plain("the weights are quantized or changed while they are read")
    plan = fitting_plan(target.spec, None, machine, limits)
    if plan is None or not plan.slots:
        return _plain("nothing streams") if plan else LinkChoice(PLAIN_LINK)
    try:
        packed, _ = read_target(replace(options, link=PACKED_LINK), machine)
    except UnsupportedModelError:
        return _plain("these weights cannot be packed without loss")
    if Tier.DISK in plan.tiers and not target.missing_bytes:
        machine = replace(machine, disk_bandwidth=read_bandwidth(target.checkpoint.files, plan.read_chunk_bytes))
    beside = COPIES[str(options.draft)] if options.draft in COPIES and options.tree != "none" else None
    spec = with_resident_codes(packed.spec, beside) if beside else packed.spec  # the copies themselves are alike
    return _faster(target.spec, spec, machine, limits)


def _faster(target: ModelSpec, packed: ModelSpec, machine: Machine, limits: Limits) -> LinkChoice:
    """The link with the faster pass over one token."""
    seconds, sizes = [], []
    for spec in (target, packed):
        plan = fitting_plan(spec, None, machine, limits)
        if plan is None:
            return _plain("packed weights would not fit")
        cost = plan.target_cost(spec)
        if not (cost.is_known and cost.knows_computing):
            return _plain("the speed of this machine is not known before its first run")
        seconds.append(cost.seconds(1, 1, plan.context_length // 2).total)
        sizes.append(format_size(plan.streamed_bytes))
    link = PACKED_LINK if seconds[1] < seconds[0] else PLAIN_LINK
    ways = [f"{name} {one:.3g} s a pass over {size}" for name, one, size in zip(LINKS, seconds, sizes)]
    return LinkChoice(link, f"--link auto: {link}. Predicted {', '.join(ways)}, restoring included.")


def _plain(why: str) -> LinkChoice:
    return LinkChoice(PLAIN_LINK, f"--link auto: plain, since {why}.")
