"""How large a low-bit copy of a model is, that drafts for it, and what streams beside it. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from loaders.checkpoint.read_spec import LAYER_NUMBER
from loaders.checkpoint.spec import ITEMSIZE, LayerSpec, ModelSpec, aligned
from loaders.errors import UnsupportedModelError
from loaders.formats.lossless import LosslessFormat
from loaders.formats.weights import told_apart
from loaders.lossless.bins import BLOCK, GROUP, KINDS, RUNS
from loaders.safetensors_files.headers import Checkpoint, StoredTensor

# The names of copies, and their bits a weight.
COPIES = {"self": 4, **{f"self:{bits}": bits for bits in RUNS}}


def with_resident_codes(target: ModelSpec, bits: int) -> ModelSpec:
    """The target beside its copy in `bits` bits, which are the codes of weights stored without loss in that width."""
    if target.code_bits != bits:
        return target
    return replace(target, layers=tuple(layer.without_code for layer in target.layers))


def what_streams(target: ModelSpec, checkpoint: Checkpoint, bits: int) -> Iterator[str]:
    """Of weights stored without loss beside a copy in `bits` bits: how many stream as rests, which whole, and why."""
    if target.code_bits is None:
        return
    if target.code_bits != bits:
        yield (
            f"Codes stream with their rests: they have {target.code_bits} bits, the copy {bits}; "
            f"--draft self:{target.code_bits} streams rests alone."
        )
        return
    contents, rests, whole = told_apart(LosslessFormat(bits), checkpoint), 0, Counter[str]()
    for weight in filter(lambda weight: LAYER_NUMBER.match(weight.name), contents.packed.values()):
        if weight.checksum is None:
            whole["matrices packed by an earlier version"] += 1
        else:
            rests += 1
    whole.update(_why_whole(tensor) for name, tensor in contents.plain.items() if LAYER_NUMBER.match(name))
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(whole.items()))
    yield f"Of {rests} matrices the rest alone crosses the link, the code stays{f'; whole: {listed}' if whole else ''}."


def _why_whole(tensor: StoredTensor) -> str:
    if len(tensor.shape) < 2:
        return "vectors"
    name = LAYER_NUMBER.sub("", tensor.name, count=1)
    return f"{name} ({'not packed' if tensor.dtype in KINDS else tensor.dtype})"


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
    begins = values // BLOCK * 4 if layer.resident_code_bytes else 0
    nbytes = aligned(values * bits // 8 + values // GROUP + begins)
    return LayerSpec(layer.name, nbytes, 0, packed_bytes=nbytes, decoded_bytes=layer.weight_bytes)
