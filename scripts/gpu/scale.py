"""What is run: at full size on a GPU, and tiny everywhere else, to see that all of it works."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loaders.checkpoint.random_weights import SHAPES
from loaders.sizes import GIB, MIB

# Of a cap that a device must have: drivers keep up to a tenth of what a card is sold as (A10: 23,028 MiB of 24 GB).
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Wide:
    """A shape to widen to: a known one's name, and sizes in place of its own."""

    shape: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Scale:
    """nodes: of the trees, the most telling first. caps: bytes of the device that passes may use.

    target: config of the streamed model, `distinct_layers` of which are written. planned_draft: config of the draft
    that makes the plan leave room for trees. context: half of it is the prompt. packed_weight: rows and columns of the
    matrices that are decoded. drafts: configs whose levels are timed at `widths`. chip, chip_draft: what the
    demonstration pair is widened to for decoding on the device alone. end, own: what its target is for the whole run,
    and to draft for itself. end_cap, own_cap, offload_cap: bytes of the device for these, and for the comparison with
    another program, which takes `offload_layers` layers. passes: timed in a row.
    """

    name: str
    target_name: str
    target: Mapping[str, Any]
    distinct_layers: int
    planned_draft: Mapping[str, Any]
    nodes: tuple[int, ...]
    caps: tuple[int, ...]
    context: int
    packed_weight: tuple[int, int]
    drafts: Mapping[str, Mapping[str, Any]]
    widths: tuple[int, ...]
    chip: Wide
    chip_draft: Wide
    end: Wide
    own: Wide
    end_cap: int
    own_cap: int
    offload_layers: int
    offload_cap: int
    prompts: int
    plain_tokens: int
    tree_tokens: int
    passes: int


def stands_for(cap: int, total: int) -> bool:
    """Whether a device with `total` bytes can show what one of the size of `cap` does: a 24 GB card has 24,564 MiB."""
    return total >= LEAST_SHARE * cap


def caps_to_try(caps: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Those and, for a device smaller than all of them, what it has."""
    return caps if any(stands_for(cap, total) for cap in caps) else (*caps, total)


FULL = Scale(
    name="full",
    target_name="llama-2-70b",
    target=SHAPES["llama-2-70b"],
    distinct_layers=2,
    planned_draft=SHAPES["llama-68m"],
    nodes=(1, 768, 4096, 512, 64, 2048, 256, 1024),
    caps=(24 * GIB, 46 * GIB, 16 * GIB),
    context=2048,
    packed_weight=(8192, 8192),
    drafts={name: SHAPES[name] for name in ("llama-3.2-1b", "llama-3-8b")},
    widths=(1, 8, 32, 64, 128, 256),
    chip=Wide("llama-2-7b", {}),
    chip_draft=Wide("llama-68m", {}),
    end=Wide("llama-2-70b", {}),
    own=Wide("llama-2-7b", {}),
    end_cap=24 * GIB,
    own_cap=9 * GIB,
    offload_layers=8,  # 14 GB: what is written and loaded twice in a minute
    offload_cap=6 * GIB,
    prompts=2,
    plain_tokens=64,
    tree_tokens=128,
    passes=2,
)

_SMALL_DRAFT = {**SHAPES["tiny"], "num_hidden_layers": 1}
_WIDE = {"hidden": 512, "ffn": 704, "heads": 8, "kv_heads": 4, "head_dim": 64}
TINY = Scale(
    name="dry run",
    target_name="tiny",
    target=SHAPES["tiny"],
    distinct_layers=2,
    planned_draft=_SMALL_DRAFT,
    nodes=(1, 16),
    caps=(7 * MIB // 4, 2000 * GIB),
    context=64,
    packed_weight=(256, 512),
    drafts={"tiny": SHAPES["tiny"]},
    widths=(1, 4),
    chip=Wide("llama-68m", {**_WIDE, "layers": 6}),
    chip_draft=Wide("llama-68m", {"hidden": 256, "ffn": 400, "layers": 2, "heads": 8, "kv_heads": 8, "head_dim": 32}),
    end=Wide("llama-68m", {**_WIDE, "layers": 8}),
    own=Wide("llama-68m", {**_WIDE, "layers": 12}),
    end_cap=64 * MIB,
    own_cap=72 * MIB,
    offload_layers=4,
    offload_cap=2 * MIB,
    prompts=1,
    plain_tokens=6,
    tree_tokens=16,
    passes=1,
)
