"""What the server tells of the machinery, as JSON values: the plan."""

from typing import Any

from scheduler.plan.plan import Plan
from scheduler.plan.table import summary

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
