"""Checkpoints of real models' shapes that take no room: config.json and the headers, the weights a hole in the file."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ITEMSIZE = {"BF16": 2, "F16": 2, "I32": 4}


def header_checkpoint(directory: Path, config: dict[str, Any], awq: dict[str, Any] | None = None) -> Path:
    """A directory of config.json and one sparse safetensors file in bfloat16; whatever is read from it is zero.

    awq: a `quantization_config` of 4 bits; the layers' matrices are stored as it says.
    """
    directory.mkdir(parents=True)
    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    tied = model.all_tied_weights_keys
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        stored = {name: ("BF16", list(tensor.shape))}
        if awq and ".layers." in name and tensor.dim() == 2:
            stored = _packed(name.removesuffix(".weight"), *tensor.shape, awq["group_size"])
        for each, (dtype, shape) in stored.items() if name not in tied else ():
            begin, end = end, end + ITEMSIZE[dtype] * math.prod(shape)
            header[each] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file = directory / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)
    packing = {"quantization_config": awq} if awq else {}
    (directory / "config.json").write_text(
        json.dumps({**config, **packing, "architectures": [type(model).__name__], "dtype": "bfloat16"})
    )
    return directory


def _packed(module: str, outputs: int, inputs: int, group: int) -> dict[str, tuple[str, list[int]]]:
    """AWQ's tensors in place of a weight [outputs, inputs]."""
    return {
        f"{module}.qweight": ("I32", [inputs, outputs // 8]),
        f"{module}.qzeros": ("I32", [inputs // group, outputs // 8]),
        f"{module}.scales": ("F16", [inputs // group, outputs]),
    }
