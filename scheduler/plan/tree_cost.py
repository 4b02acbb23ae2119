"""Cost of drafting and verifying a tree on a GPU besides the models' passes: launches, and vocabulary-wide reads.

Bytes are counted from each operation's reads and writes; seconds are predicted, not measured.
"""

from __future__ import annotations

from scheduler.machine.machine import Machine
from scheduler.plan.pass_cost import LAUNCH_SECONDS

GROWTH_LAUNCHES = 33  # per level: distribution, noise, highest keys, frontier
VERIFICATION_LAUNCHES, EXPANSION_LAUNCHES = 90, 14
# Per token of the vocabulary. Of a drafted row: log-softmax (12 bytes), probabilities (16), float64 noise (24), keys
# (20), their top-k in about three reads (24). Of a verified node: the target's distribution (40), then its
# test: both distributions gathered (16), subtracted (12), cut at 0 (8), summed (4).
GROWN_BYTES, VERIFIED_BYTES = 96, 80


def growth_seconds(rows: int, vocab_size: int, machine: Machine) -> float:
    """One level over `rows` rows, and the expansion step in which its nodes are verified later.

    0 if the device is not a GPU or its speed is unknown.
    """
    return _seconds(GROWTH_LAUNCHES + EXPANSION_LAUNCHES, rows * vocab_size * GROWN_BYTES, machine)


def verification_seconds(nodes: int, vocab_size: int, machine: Machine) -> float:
    """One tree. It takes as many expansion steps as its longest path has nodes and their earlier siblings: one for each
    level, which `growth_seconds` counts, and about log2(nodes) for siblings. 0 as for `growth_seconds`, and for a tree
    of the root alone.
    """
    if nodes < 2:
        return 0.0
    launches = VERIFICATION_LAUNCHES + EXPANSION_LAUNCHES * nodes.bit_length()
    return _seconds(launches, nodes * vocab_size * VERIFIED_BYTES, machine)


def _seconds(launches: int, nbytes: int, machine: Machine) -> float:
    """The host launches while the device reads, so the longer time counts."""
    if machine.device != "cuda" or not machine.memory_bandwidth:
        return 0.0
    return max(launches * LAUNCH_SECONDS, nbytes / machine.memory_bandwidth)
