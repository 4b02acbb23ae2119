"""The tensors of a GGUF file by transformers' names, with what dequantizing has to undo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from loaders.errors import UnsupportedModelError
from loaders.gguf.families.architecture import GgufArchitecture
from loaders.gguf.families.known import family_of
from loaders.gguf.header import GgufFile, GgufTensor
from loaders.gguf.metadata import Metadata

NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?([\w.]+?)(?:\.(weight|bias))?")
# Factors of the rotary frequencies, which become part of the config.
ROTATIONS = {"rope_freqs", "rope_factors_long", "rope_factors_short"}


def model_tensors(gguf: GgufFile) -> dict[str, GgufTensor]:
    """The tensors by transformers' names; layers that predict further tokens are left out where they are no known head.

    Raises UnsupportedModelError for a tensor that the model lacks: ignoring it would change the results.
    """
    metadata = Metadata(gguf, gguf.get("general.architecture", str))
    family = family_of(gguf)
    parts = [part for name, tensor in gguf.tensors.items() for part in _parts(family, metadata, name, tensor)]
    return {part.name: part for part in (*parts, *family.further(metadata))}


def _parts(family: GgufArchitecture, metadata: Metadata, name: str, tensor: GgufTensor) -> Iterator[GgufTensor]:
    match = NAME.fullmatch(name)
    number, leaf, suffix = match.groups(default="") if match else ("", name, "")
    if leaf in ROTATIONS or (number and int(number) >= metadata.layers and not family.predicts):
        return
    layer = f"model.layers.{int(number)}." if number else ""
    divide = (family.divided if number else family.divided_outside).get(f"{leaf}.{suffix}" if suffix else leaf)
    if divide:
        yield from divide(metadata, layer, tensor)
        return
    renamed = family.names(leaf, suffix, bool(number))
    if renamed is None:
        raise UnsupportedModelError(
            f"{tensor.file}: it holds {name[:80]}, which transformers has no place for in a {metadata.prefix} model: "
            "without it the numbers would be others. Use the original checkpoint in safetensors instead."
        )
    is_offset = family.norms_plus_one and leaf.endswith("norm") and leaf not in family.own_norms and suffix == "weight"
    yield replace(
        tensor, name=layer + renamed, paired_heads=_pairs(family, metadata, leaf), less=1.0 if is_offset else 0.0
    )


def _pairs(family: GgufArchitecture, metadata: Metadata, leaf: str) -> int:
    """Of how many heads rows are stored in pairs."""
    if not family.paired or leaf not in ("attn_q", "attn_k"):
        return 0
    return metadata.integer("attention.head_count") if leaf == "attn_q" else max(metadata.kv_heads)
