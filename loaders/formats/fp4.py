"""4-bit floats (e2m1), two a byte, with a scale per group of inputs: NVFP4 and MXFP4, as two libraries store them.

compressed-tensors: weight_packed, weight_scale, weight_global_scale, which scales are divided by. ModelOpt: weight,
weight_scale, weight_scale_2, which they are multiplied by; of fused experts "….gate_up_proj", "…_weight_scale", ….
MXFP4 has no global scale, and powers of two for scales.
"""

from __future__ import annotations

from loaders.errors import ModelFilesError
from loaders.formats.schemes import Fp4
from loaders.formats.weights import PackedWeight, Tensors, groups, matrix, take
from loaders.safetensors_files.headers import StoredTensor

NVFP4_GROUP, MXFP4_GROUP = 16, 32
EXPONENTS = ("U8", "F8_E8M0")


def fp4_matrix(
    tensors: Tensors,
    base: str,
    packed: StoredTensor,
    group_size: int,
    overall: str | None,
    in_float32: bool = False,
    leaf: str = ".weight_scale",
) -> PackedWeight:
    """The weight of a module `base`, whose scales are called `leaf`. overall: the leaf of its global scale, None for
    scales that are powers of two.

    Raises ModelFilesError for missing tensors and wrong shapes, UnsupportedModelError for a part of a group.
    """
    outputs, pairs = matrix(packed)
    count = groups(2 * pairs, group_size, packed)
    dtypes = EXPONENTS if overall is None else ("F8_E4M3",)
    scale = take(tensors, base + leaf, dtypes, (outputs, count), because=f" for {packed.name}")
    operands = {"weight": packed, "weight_scale": scale}
    if overall is not None:
        shapes = [(1,)] if overall == "weight_global_scale" else [(), (1,)]
        operands["global_scale"] = take(tensors, f"{base}.{overall}", ["F32"], *shapes, because=f" for {packed.name}")
    scheme = Fp4(group_size, divides=overall == "weight_global_scale", in_float32=in_float32)
    return PackedWeight(f"{base}.weight", (outputs, 2 * pairs), scheme, operands)


def fp4_experts(tensors: Tensors, name: str, packed: StoredTensor) -> PackedWeight:
    """Fused experts of ModelOpt in NVFP4, [E, K/2, N]: the models that have them (Llama 4, gpt-oss) are [E, K, N].

    Raises ModelFilesError for missing tensors and wrong shapes.
    """
    size = NVFP4_GROUP
    if len(packed.shape) != 3 or 0 in packed.shape or 2 * packed.shape[1] % size:
        raise ModelFilesError(
            f"{packed.file}: {packed.name} must be [experts, inputs / 2, outputs], with groups of {size} inputs, but "
            f"has shape {list(packed.shape)}."
        )
    experts, pairs, outputs = packed.shape
    because = f" for {packed.name}"
    operands = {
        "weight": packed,
        "weight_scale": take(
            tensors, f"{name}_weight_scale", ["F8_E4M3"], (experts, 2 * pairs // size, outputs), because=because
        ),
        "global_scale": take(tensors, f"{name}_weight_scale_2", ["F32"], (), (1,), (experts,), because=because),
    }
    scheme = Fp4(size, in_float32=True, by_column=True)
    return PackedWeight(name, (experts, 2 * pairs, outputs), scheme, operands)
