"""Checkpoints of real models' shapes that take no room: config.json and the headers, the weights a hole in the file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def header_checkpoint(directory: Path, config: dict[str, Any]) -> Path:
    """A directory of config.json and one sparse safetensors file in bfloat16; whatever is read from it is zero."""
    directory.mkdir(parents=True)
    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    tied = model.all_tied_weights_keys
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        if name not in tied:
            begin, end = end, end + 2 * tensor.numel()
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file = directory / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)
    (directory / "config.json").write_text(
        json.dumps({**config, "architectures": [type(model).__name__], "dtype": "bfloat16"})
    )
    return directory
