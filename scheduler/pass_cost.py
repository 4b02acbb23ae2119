"""What passes are predicted to cost: bytes over bandwidths and operations over speed, put through the ring.

unit     max(weights / memory bandwidth, operations / speed, launching its kernels)
pass     units, read, copied and computed side by side as the ring allows, then the head over the nodes of the tree
level    the same for a draft that is resident, over the nodes of one level
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loaders.spec import ITEMSIZE, ModelSpec, UnitSpec
from scheduler.machine import Machine
from scheduler.pipeline import PassSeconds, Stage, simulate
from scheduler.placement import Tier

# Python of one of transformers' decoder layers with our hooks, without what it computes: 0.35 ms on an x86-64 core.
LAYER_SECONDS = 0.35e-3
# Host buffers that the disk tier is read ahead into, beside a GPU.
STAGING_BUFFERS = 2


@dataclass(frozen=True)
class PassCost:
    """Predicts passes of one model under one placement on one machine. What of the machine is not known costs nothing.

    tiers: one per unit. slots: of the ring.
    """

    spec: ModelSpec
    tiers: Sequence[Tier]
    slots: int
    machine: Machine

    @property
    def is_known(self) -> bool:
        """Whether the bandwidth of every tier that streams is known."""
        return all(self._bandwidth(tier) for tier in set(self.tiers))

    @property
    def knows_computing(self) -> bool:
        """Whether the device's speed is known, too."""
        return self.machine.flops is not None and self.machine.memory_bandwidth is not None

    def seconds(self, rows: int, nodes: int, context: int, gap: float = 0.0) -> PassSeconds:
        """A pass over `rows` tokens, logits after `nodes` of them, behind `context` tokens in the cache.

        gap: seconds between two passes, in which the ring is filled up again.
        """
        stages = list(self._stages(rows, context))
        head = self._head_seconds(nodes)
        stages.append(Stage(0.0, 0.0, head))
        return simulate(stages, self.slots, STAGING_BUFFERS, gap)

    def _stages(self, rows: int, context: int) -> Iterator[Stage]:
        on_gpu = self.machine.device == "cuda"
        for unit, tier in zip(self.spec.units, self.tiers):
            compute = self._unit_seconds(unit, rows, context)
            if tier is Tier.DEVICE:
                yield Stage(0.0, 0.0, compute)
            elif tier is Tier.HOST:
                yield Stage(0.0, self._over(unit.nbytes, self.machine.link_bandwidth), compute)
            elif on_gpu:
                read = self._over(unit.disk_bytes, self.machine.disk_bandwidth)
                yield Stage(read, self._over(unit.nbytes, self.machine.link_bandwidth), compute)
            else:
                yield Stage(0.0, self._over(unit.disk_bytes, self.machine.disk_bandwidth), compute)

    def _unit_seconds(self, unit: UnitSpec, rows: int, context: int) -> float:
        weights = 2 * rows * unit.weight_bytes / ITEMSIZE[self.spec.dtype]
        attention = 4 * rows * (context + rows) * self.spec.hidden_size
        moved = unit.nbytes + 2 * unit.decoded_bytes  # what is decoded is written and read again
        return max(self._compute_seconds(moved, weights + attention), LAYER_SECONDS * self.knows_computing)

    def _head_seconds(self, nodes: int) -> float:
        values = self.spec.vocab_size * self.spec.hidden_size
        return self._compute_seconds(values * ITEMSIZE[self.spec.dtype], 2 * nodes * values)

    def _compute_seconds(self, nbytes: int, operations: float) -> float:
        return max(self._over(nbytes, self.machine.memory_bandwidth), self._over(operations, self.machine.flops))

    def _bandwidth(self, tier: Tier) -> float | None:
        """Of what the tier is limited by; any number for the device itself."""
        if tier is Tier.DEVICE:
            return 1.0
        return self.machine.link_bandwidth if tier is Tier.HOST else self.machine.disk_bandwidth

    @staticmethod
    def _over(amount: float, rate: float | None) -> float:
        return amount / rate if rate else 0.0


def resident_cost(spec: ModelSpec, machine: Machine) -> PassCost:
    """Of a model that lies on the device whole, as drafts do."""
    return PassCost(spec, (Tier.DEVICE,) * len(spec.units), 0, machine)
