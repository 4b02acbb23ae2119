"""Where one model lies in memory, as the plan says it."""

from dataclasses import dataclass

from offload_runtime.model.cached_rows.travelling_rows import RowsOnHost
from scheduler.plan.expert_choice import ExpertChoice
from scheduler.plan.placement import Tier


@dataclass(frozen=True)
class ModelPlacement:
    """Where the parts of one model lie, and what its passes have room for.

    tiers: of each decoder layer; embeddings, final norm and head are always resident.
    slots: ring slots for the layers that stream. pinned_limit: most bytes of host memory to pin; None: no limit known.
    capacity: rows of the KV cache for each text, committed and in progress together. sequences: texts it holds, none
    of them longer than `longest_text`.
    positions: how many the model was made for.
    choice: decides for every pass whether layers stream only their routed experts; None: they stream all experts.
    dequantized: number of leading layers, all resident, whose quantized weights are dequantized once, at load.
    travelling: the rows of the KV cache lie in host memory; None: on the device. rows_in_8_bits: how they are stored.
    """

    tiers: tuple[Tier, ...]
    slots: int
    capacity: int
    positions: int
    pinned_limit: int | None = None
    choice: ExpertChoice | None = None
    dequantized: int = 0
    sequences: int = 1
    longest_text: int = 0
    travelling: RowsOnHost | None = None
    rows_in_8_bits: bool = False
