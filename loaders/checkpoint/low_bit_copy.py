"""How large a low-bit copy of a model is, that drafts for it. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from loaders.checkpoint.spec import ITEMSIZE, LayerSpec, ModelSpec, aligned
from loaders.errors import UnsupportedModelError
from loaders.lossless.bins import GROUP, RUNS

# The names of copies, and their bits a weight.
COPIES = {"self": 4, **{f"self:{bits}": bits for bits in RUNS}}


def copy_of(target: ModelSpec, bits: int) -> ModelSpec:
    """The spec of a copy in `bits` bits, which reads and writes the target's own KV rows, as a draft.

    Raises UnsupportedModelError for a model with recurrent layers, whose states it would change.
    """
    if target.recurrent:
        raise UnsupportedModelError(
            f"{target.name}: it has recurrent layers, whose states a copy of it would change, so it cannot draft for "
            "itself.\n  --draft none decodes plainly"
        )
    layers = tuple(_copied(layer, ITEMSIZE[target.dtype], bits) for layer in target.layers)
    return replace(
        target,
        name=f"{bits}-bit copy of {target.name}",
        layers=layers,
        embeddings_and_head_bytes=0,
        kv_bytes_per_token=0,
        largest_kv_bytes=0,
        computed_rows=None,
        decode_bytes=max(layer.weight_bytes for layer in target.layers),
        embeddings_and_head_decode_bytes=0,
        index=None,
        copy_bits=bits,
    )


def _copied(layer: LayerSpec, itemsize: int, bits: int) -> LayerSpec:
    values = layer.weight_bytes // itemsize
    nbytes = aligned(values * bits // 8 + values // GROUP)
    return LayerSpec(layer.name, nbytes, 0, packed_bytes=nbytes, decoded_bytes=layer.weight_bytes)
