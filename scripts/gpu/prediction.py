"""What the plan says a pass will take, before it runs."""

from scheduler.plan import Plan


def predicted_pass(plan: Plan, rows: int) -> float | None:
    """Seconds of a pass of `rows` rows by the plan's cost model; None where it makes no prediction."""
    return plan.seconds_per_pass if rows == 1 else None
