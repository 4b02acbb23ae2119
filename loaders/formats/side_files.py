"""Files beside config.json that say how weights are packed, where config.json itself does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loaders.json_files import read_json

# By name: the format that is meant where the file names none. AutoGPTQ, AutoAWQ and llm-awq, AutoRound, ModelOpt.
SIDE_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": None,
    "hf_quant_config.json": "modelopt",
}


def with_side_file(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The config with what a file beside it says about its weights, unless it says that itself.

    Raises ModelFilesError for such a file that cannot be read.
    """
    if config.get("quantization_config") or config.get("compression_config"):
        return {**config}
    for name, method in SIDE_FILES.items():
        if (directory / name).is_file():
            values = read_json(directory / name)
            stated = values.get("quant_method") or method
            return {**config, "quantization_config": {**values, "quant_method": stated}}
    return {**config}
