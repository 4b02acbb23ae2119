"""What the server tells of the machinery, as JSON values: the plan, the passes of a reply, what happens right now."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scheduler.plan.plan import Plan
from scheduler.plan.table import summary

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.speculation.target import PassProgress
    from sequoia_tree.shaping.settings import Sampling

_MACHINE = (
    *("device", "device_name", "device_total", "host_total", "cores"),
    *("link_bandwidth", "disk_bandwidth", "memory_bandwidth", "pcie", "estimated"),
)


def plan_view(plan: Plan) -> dict[str, Any]:
    """The plan as `GET /v1/sequoia/plan` answers it, with `summary`: what it means, in sentences.

    Of the machine only what explains speed and room: no identifiers, no driver, nothing that runs beside this.
    """
    values = plan.as_dict()
    machine = {name: values["machine"][name] for name in _MACHINE}
    return {**values, "machine": machine, "summary": [sentence.strip() for sentence in summary(plan)]}


def sampling_view(defaults: "Sampling") -> dict[str, Any]:
    """What requests are sampled with that say nothing else, as far as the page offers it."""
    return {name: getattr(defaults, name) for name in ("temperature", "top_p", "top_k", "min_p")}


def activity_view(progress: "PassProgress | None", running: int, waiting: int, parallel: int) -> dict[str, Any]:
    """What the server does right now: texts that are written and that wait, and how far the current pass is."""
    passing = progress and {
        **asdict(progress),
        "share": progress.share,
        "seconds_left": progress.seconds_left,
    }
    return {"running": running, "waiting": waiting, "parallel": parallel, "pass": passing}


def step_view(step: "Step") -> dict[str, Any]:
    """A pass, as chunks of a stream carry it under "sequoia" where a request asks for that.

    tree: its parents and the accepted nodes from the root downwards; None without a pass. pieces: the answer's text by
    tokens.
    """
    tree = None if step.tree is None else {"parents": step.tree.parents, "accepted": [*step.path]}
    counts = {"drafted": step.drafted, "accepted": step.accepted, "tokens": len(step.token_ids)}
    seconds = {"draft_seconds": step.draft_seconds, "target_seconds": step.target_seconds}
    reading = {"streamed_bytes": step.streamed_bytes, "read_tokens": step.read_tokens, "method": step.method}
    return {**counts, **seconds, **reading, "pieces": [*step.pieces], "tree": tree}
