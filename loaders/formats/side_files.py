"""Files beside config.json that say how weights are quantized if config.json does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loaders.json_files import read_json

# File name to the default format. Written by AutoGPTQ, AutoAWQ and llm-awq, AutoRound, ModelOpt.
SIDE_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": None,
    "hf_quant_config.json": "modelopt",
}


def with_side_file(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The config, completed from a side file unless it describes its weights itself.

    Raises ModelFilesError if the side file cannot be read.
    """
    if config.get("quantization_config") or config.get("compression_config"):
        return {**config}
    for name, method in SIDE_FILES.items():
        if (directory / name).is_file():
            values = read_json(directory / name)
            stated = values.get("quant_method") or method
            return {**config, "quantization_config": {**values, "quant_method": stated}}
    return {**config}
