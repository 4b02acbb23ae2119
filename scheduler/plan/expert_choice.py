"""Whether a pass fetches only its routed experts or streams all experts ahead of their use."""

import math
from collections.abc import Sequence
from dataclasses import replace

from scheduler.plan.pass_cost import PassCost

# The weight of one pass in the running averages.
_NEWEST = 1 / 8


class ExpertChoice:
    """Decides pass by pass from the cost model, the observed number of routed experts and the observed read speed.

    Tokens of one text resemble each other: `n` of them are routed to as many experts as 1 + alike · (n - 1) independent
    tokens would be, where `alike` is learnt.
    """

    def __init__(self, cost: PassCost):
        self._cost = cost
        self._count, self._per_token = max(layer.experts for layer in cost.spec.layers), cost.spec.experts_per_token
        self._alike = 1.0
        self._read_bytes = self._read_seconds = 0.0  # of the latest passes

    def routed(self, rows: int) -> float:
        """The expected number of routed experts per layer in a pass over `rows` tokens; 0 if the model has none."""
        return self._cost.routed(1 + self._alike * (rows - 1)) or 0.0

    def only_routed(self, rows: int, context: int) -> bool:
        """Whether fetching only the routed experts is faster, with `context` tokens in the cache."""
        routed = self.routed(rows)
        if not routed:
            return False
        if not self._cost.is_known:
            return 2 * routed <= self._count
        fetched = self._cost.seconds_with(routed, rows, 1, context)
        return fetched.total < self._cost.seconds_with(None, rows, 1, context).total

    def observe_reading(self, nbytes: float, seconds: float) -> None:
        """Record what a pass read from disk and in what time: while computing, unlike earlier measurements."""
        if nbytes <= 0 or seconds <= 0:
            return
        self._read_bytes += nbytes - _NEWEST * self._read_bytes
        self._read_seconds += seconds - _NEWEST * self._read_seconds
        machine = replace(self._cost.machine, disk_bandwidth=self._read_bytes / self._read_seconds)
        self._cost = replace(self._cost, machine=machine)

    def observe(self, rows: int, routed: Sequence[int]) -> None:
        """Record the number of routed experts of a pass, for each of some layers."""
        if rows < 2 or not routed or not 0 < self._per_token < self._count:
            return
        missed = max(1 - sum(routed) / len(routed) / self._count, 1e-6)
        independent = math.log(missed) / math.log(1 - self._per_token / self._count)
        alike = min(max((independent - 1) / (rows - 1), 0.0), 1.0)
        self._alike += _NEWEST * (alike - self._alike)
