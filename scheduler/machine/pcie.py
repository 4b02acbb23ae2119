"""PCI Express: the bandwidth of a slot by generation and width."""

from dataclasses import dataclass

# Bytes per second and lane after line coding: 8, 16, 32 and 64 GT/s, the first three with 128 of 130 bits used.
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
# The share that copies from pinned memory reach: about 25 of 31.5 GB/s on generation 4 with 16 lanes.
SHARE = 0.8


@dataclass(frozen=True)
class PCIe:
    """A slot."""

    generation: int
    lanes: int

    @property
    def bandwidth(self) -> float | None:
        """Expected bytes per second of copies from the host; None for an unknown generation."""
        lane = _LANE.get(self.generation)
        return lane * self.lanes * SHARE if lane else None

    def __str__(self) -> str:
        return f"PCIe {self.generation}.0 x{self.lanes}"
