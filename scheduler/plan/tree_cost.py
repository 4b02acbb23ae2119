"""What growing and verifying a tree take on a GPU beside the models' passes: launches, and rows of the vocabulary read.

Bytes are counted from the operations, a read or write of a number at a time; seconds are predicted, not measured.
"""

from __future__ import annotations

from scheduler.machine.machine import Machine
from scheduler.plan.pass_cost import LAUNCH_SECONDS

GROWTH_LAUNCHES = 31  # of a level: its distribution, the noise, the highest keys, the frontier
VERIFICATION_LAUNCHES, WAVE_LAUNCHES = 90, 14
# Per token of the vocabulary. Of a drafted row: log-softmax (12 bytes), probabilities (16), float64 noise (24), keys
# (20), the highest of them in some three readings (24). Of a verified node: the target's distribution (40), then its
# test: both distributions gathered (16), subtracted (12), cut at 0 (8), summed (4).
GROWN_BYTES, VERIFIED_BYTES = 96, 80


def growth_seconds(rows: int, vocab_size: int, machine: Machine) -> float:
    """Of one level over `rows` rows; 0 where the device is no GPU or not known."""
    return _seconds(GROWTH_LAUNCHES, rows * vocab_size * GROWN_BYTES, machine)


def verification_seconds(nodes: int, vocab_size: int, machine: Machine) -> float:
    """Of a tree. Its expansion steps are as many as the longest path has nodes and earlier siblings: at least
    log2(nodes), of trees that are worth their time about twice as many. 0 as above, and where there is no tree.
    """
    if nodes < 2:
        return 0.0
    launches = VERIFICATION_LAUNCHES + WAVE_LAUNCHES * 2 * nodes.bit_length()
    return _seconds(launches, nodes * vocab_size * VERIFIED_BYTES, machine)


def _seconds(launches: int, nbytes: int, machine: Machine) -> float:
    """The host launches while the device reads, so the longer of both."""
    if machine.device != "cuda" or not machine.memory_bandwidth:
        return 0.0
    return max(launches * LAUNCH_SECONDS, nbytes / machine.memory_bandwidth)
