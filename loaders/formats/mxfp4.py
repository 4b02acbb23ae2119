"""MXFP4 (gpt-oss): fused experts of 4-bit floats, with a power-of-two scale per 32 values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.errors import ModelFilesError
from loaders.formats.schemes import Fp4
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, take

BLOCK_BYTES = 16
BLOCK = 32


@dataclass(frozen=True)
class Mxfp4Format:
    label: str = "MXFP4"

    @classmethod
    def read(cls, settings: Settings) -> Mxfp4Format:
        if settings.model_type != "gpt_oss":  # other models may store their experts untransposed
            raise settings.unsupported(
                f"quant_method is mxfp4 and model_type is {settings.model_type!r:.80}; gpt_oss can be run"
            )
        return cls()

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, "_blocks"):
            blocks = take(tensors, f"{base}_blocks", ["U8"])
            if len(blocks.shape) != 4 or blocks.shape[-1] != BLOCK_BYTES or 0 in blocks.shape:
                raise ModelFilesError(
                    f"{blocks.file}: {base}_blocks has shape {list(blocks.shape)}, but must have "
                    f"[experts, outputs, inputs / {BLOCK}, {BLOCK_BYTES}]."
                )
            experts, outputs, count, _ = blocks.shape
            scales = take(tensors, f"{base}_scales", ["U8"], blocks.shape[:-1], because=f" for {base}_blocks")
            operands = {"weight": blocks, "weight_scale": scales}
            yield PackedWeight(base, (experts, count * BLOCK, outputs), Fp4(BLOCK, input_major=True), operands)
