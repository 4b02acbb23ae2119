"""Single packed weights of awkward sizes, as the formats find them in files."""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loaders.formats import read_format
from loaders.formats.schemes import Scheme
from loaders.safetensors_files.headers import read_header
from tests.samples.quantized.packed_models import (
    AWQ,
    BNB4,
    FLOATS,
    INTEGERS,
    MX,
    NVFP4,
    compressed_config,
    fp8_config,
    gptq_config,
    modelopt_config,
)
from tests.samples.quantized.packed_samples import (
    Packed,
    awq,
    bitsandbytes_int8,
    fp8,
    gptq,
    int8,
    lossless,
    mx,
    mxfp4,
    nf4,
    nvfp4,
    nvfp4_experts,
    words,
)

NAME = "model.layers.0.mlp.up_proj"


def compressed(packing: str, **weights: Any) -> dict[str, Any]:
    return compressed_config(packing, **{**INTEGERS, **weights})


ASYMMETRIC = {"symmetric": False}
CASES: dict[str, tuple[Callable[[Tensor], Packed], dict[str, Any]]] = {
    "awq": (partial(awq, group=16), {**AWQ, "group_size": 16}),
    "awq rows": (partial(awq, group=96), {**AWQ, "group_size": -1}),
    "gptq": (partial(gptq, group=16, order="none"), gptq_config(group_size=16)),
    "gptq rows": (partial(gptq, group=None, order="none"), gptq_config(group_size=-1)),
    "gptq order": (partial(gptq, group=24, order="activations"), gptq_config(group_size=24)),
    "gptq second version": (partial(gptq, less_one=False, order="none"), gptq_config(checkpoint_format="gptq_v2")),
    "gptq 8 bit": (partial(gptq, bits=8, group=24, order="activations"), gptq_config(bits=8, group_size=24)),
    "words 4": (partial(words, group=24), compressed("pack-quantized", group_size=24)),
    "words 4 float32": (partial(words, dtype=torch.float32), compressed("pack-quantized")),
    "words 4 zeros": (partial(words, symmetric=False), compressed("pack-quantized", **ASYMMETRIC)),
    "words 4 order": (
        partial(words, group=16, symmetric=False, mixed=True),
        compressed("pack-quantized", group_size=16, **ASYMMETRIC),
    ),
    "words 8 rows": (
        partial(words, bits=8, group=None, symmetric=False, dtype=torch.float16),
        compressed("pack-quantized", num_bits=8, strategy="channel", group_size=None, **ASYMMETRIC),
    ),
    "int8": (int8, compressed("int-quantized", num_bits=8, strategy="channel", group_size=None)),
    "int8 groups": (
        partial(int8, group=24, symmetric=False),
        compressed("int-quantized", num_bits=8, group_size=24, **ASYMMETRIC),
    ),
    "int8 of 4 bits": (  # as W4A8 is stored
        partial(int8, group=16, symmetric=False),
        compressed("int-quantized", num_bits=4, group_size=16, **ASYMMETRIC),
    ),
    "fp8 blocks": (
        partial(fp8, block=(20, 28), dtype=torch.bfloat16),
        compressed_config("float-quantized", strategy="block", block_structure=[20, 28], **FLOATS),
    ),
    "fp8 float32 blocks": (
        partial(fp8, block=(16, 32), dtype=torch.float32, name="weight_scale_inv"),
        fp8_config(16, 32),
    ),
    "fp8 tensor": (partial(fp8, block=(40, 96), dtype=torch.float32), {"quant_method": "fp8"}),
    "fp8 rows": (partial(fp8, block=(1, 96), dtype=torch.float32), {"quant_method": "fbgemm_fp8"}),
    "bitsandbytes int8": (bitsandbytes_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (partial(nf4, dtype="float16"), BNB4),
    "nf4 nested": (partial(nf4, nested=7), BNB4),
    "MXFP4": (mxfp4, {"quant_method": "mxfp4"}),
    "lossless 3": (partial(lossless, bits=3), {"quant_method": "lossless", "bits": 3}),
    "lossless 4": (lossless, {"quant_method": "lossless", "bits": 4}),
    "lossless 5 float16": (partial(lossless, bits=5, dtype=torch.float16), {"quant_method": "lossless", "bits": 5}),
    "NVFP4": (nvfp4, compressed_config("nvfp4-pack-quantized", **NVFP4)),
    "MXFP4 of matrices": (partial(mx, bits=4), compressed_config("mxfp4-pack-quantized", **MX, num_bits=4)),
    "MXFP8": (partial(mx, bits=8), compressed_config("mxfp8-quantized", **MX, num_bits=8)),
    "ModelOpt NVFP4": (partial(nvfp4, modelopt=True), modelopt_config("NVFP4")),
    "ModelOpt MXFP4": (partial(mx, bits=4, modelopt=True), modelopt_config("W4A8_MXFP4_FP8")),
    "ModelOpt MXFP8": (partial(mx, bits=8, modelopt=True), modelopt_config("MXFP8")),
    "ModelOpt FP8": (partial(fp8, block=(40, 96), dtype=torch.float32), modelopt_config("FP8")),
    "ModelOpt experts": (nvfp4_experts, modelopt_config("NVFP4")),
}
WEIGHTS = tuple(CASES)


@cache
def packed_weight(case: str, seed: int = 0) -> tuple[Scheme, dict[str, Tensor], tuple[int, ...], Tensor]:
    """Scheme, stored tensors by role, shape, and what the writer says it decodes to."""
    pack, config = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 64, 40) if case in ("MXFP4", "ModelOpt experts") else (40, 96)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts, decoded = pack(torch.randn(shape, generator=generator))
    tensors = {f"{NAME}{'.' if leaf and leaf[0] != '_' else ''}{leaf}": t.contiguous() for leaf, t in parts.items()}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.safetensors"
        save_file(tensors, file)
        stored = load_file(file)
        packing = read_format({"model_type": "gpt_oss", "quantization_config": config}, file)
        assert packing is not None
        (weight,) = packing.weights(read_header(file))
        assert weight.shape == shape
        return weight.scheme, {role: stored[t.name] for role, t in weight.operands.items()}, weight.shape, decoded
