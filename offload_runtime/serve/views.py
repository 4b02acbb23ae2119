"""What the server tells of the machinery, as JSON values: the plan, and the passes of a reply."""

from typing import TYPE_CHECKING, Any

from scheduler.plan.plan import Plan
from scheduler.plan.table import summary

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step

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
