"""Quantization formats: reads `quantization_config`, and finds the stored tensors of each weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loaders.errors import UnsupportedModelError
from loaders.formats import auto_round, bitsandbytes
from loaders.formats.awq import AwqFormat
from loaders.formats.compressed_tensors import CompressedFormat
from loaders.formats.fp8 import Fp8Format
from loaders.formats.gguf import GgufFormat
from loaders.formats.gptq import GptqFormat
from loaders.formats.lossless import METHOD as LOSSLESS
from loaders.formats.lossless import LosslessFormat
from loaders.formats.modelopt import ModelOptFormat
from loaders.formats.mxfp4 import Mxfp4Format
from loaders.formats.weights import Format, Settings
from loaders.text_part import text_values

# By `quant_method`.
METHODS: dict[str, Callable[[Settings], Format]] = {
    "awq": AwqFormat.read,
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": CompressedFormat.read,
    "fbgemm_fp8": Fp8Format.read_fbgemm,
    "fp8": Fp8Format.read,
    "gguf": GgufFormat.read,
    "gptq": GptqFormat.read,
    LOSSLESS: LosslessFormat.read,
    "modelopt": ModelOptFormat.read,
    "modelopt_fp4": ModelOptFormat.read,
    "mxfp4": Mxfp4Format.read,
    "auto-round": auto_round.read,
    "intel/auto-round": auto_round.read,
}


def read_format(config: Mapping[str, Any], file: Path) -> Format | None:
    """The format of the model with this config.json; None if its weights are not quantized.

    Raises UnsupportedModelError, naming the value, for what cannot be dequantized.
    """
    config = text_values(config)
    values = config.get("quantization_config") or config.get("compression_config") or config.get("quantization")
    if not values:
        return None
    settings = Settings(
        file, values if isinstance(values, dict) else {"quant_method": values}, config.get("model_type", "")
    )
    method = settings.values.get("quant_method")
    if method is None and _is_mlx(config, settings):
        raise UnsupportedModelError(
            f"{file}: the weights are packed as MLX, Apple's library, packs them, which cannot be decoded. Use the "
            "model they were made from, or a GGUF, AWQ or GPTQ version of it."
        )
    if method is None and (settings.values.get("load_in_4bit") or settings.values.get("load_in_8bit")):
        method = "bitsandbytes"  # older files have no quant_method
    read = METHODS.get(method) if isinstance(method, str) else None
    if read is None:
        raise UnsupportedModelError(
            f"{file}: the weights are packed as {method!r:.80}, which cannot be decoded. {', '.join(METHODS)} can, and "
            "bfloat16, float16 or float32: look for a checkpoint in one of those."
        )
    return read(settings)


def _is_mlx(config: Mapping[str, Any], settings: Settings) -> bool:
    """MLX writes "quantization", in newer files also "quantization_config", without a quant_method."""
    return isinstance(config.get("quantization"), dict) and {"bits", "group_size"} <= settings.values.keys()
