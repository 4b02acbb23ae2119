"""The fused kernels by scheme. Importing this requires Triton, which PyTorch for CUDA includes on Linux."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from loaders.dequantize import triton_floats, triton_ggml, triton_integers
from loaders.dequantize.launch import MatrixStack
from loaders.dequantize.lossless import kernels as lossless
from loaders.formats.schemes import Awq, Codebook, Fp4, Ggml, Gptq, Lossless, Pieces, Scaled, Scheme, Words

KERNELS: Mapping[type, Callable[[Any, Mapping[str, Tensor], MatrixStack], None]] = {
    Awq: triton_integers.awq,
    Gptq: triton_integers.gptq,
    Words: triton_integers.words,
    Scaled: triton_floats.scaled,
    Fp4: triton_floats.fp4,
    Codebook: triton_floats.codebook,
    Ggml: triton_ggml.ggml,
    Lossless: lossless.lossless,
    Pieces: triton_ggml.pieces,
}


def decode_fused(scheme: Scheme, operands: Mapping[str, Tensor], out: Tensor, routed: Tensor | None = None) -> None:
    """Dequantize one weight, or several of one shape stacked [members, …], into `out`, in one launch.

    hits: uint8 [experts], which have equally many members each; members of experts with 0 are skipped.
    """
    with torch.cuda.device_of(out):  # Triton launches on the current GPU, wherever the tensors are
        KERNELS[type(scheme)](scheme, operands, MatrixStack.of(out if out.dim() > 1 else out[:, None], routed))
