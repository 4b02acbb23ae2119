"""Writers of LoRA adapters, and of the checkpoints that they make, by the formulas of the papers in plain torch.

Nothing here is shared with the code under test.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "base_model.model."
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8,
    "lora_dropout": 0.05, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "target_modules": ["q_proj"], "modules_to_save": None, "use_dora": False, "use_rslora": False, "rank_pattern": {},
    "alpha_pattern": {}, "qalora_group_size": 16, "megatron_core": "megatron.core", "loftq_config": {},
}  # fmt: skip


def write_adapter(
    model: Path,
    leaves: Sequence[str],
    *,
    ranks: Mapping[str, int] | None = None,
    scalings: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
    replaced: Mapping[str, Tensor] | None = None,
    tensor_name: str = "{}.lora_{}.weight",
    **config: Any,
) -> tuple[Path, Path]:
    """An adapter of all weights of `model` whose modules end in `leaves`, and the model that it makes.

    ranks, scalings: by the end of a module's name, for those that differ from 4 and 2. transposed: weights are stored
    [inputs, outputs]. replaced: tensors that the adapter holds whole, by the names of the model's.
    """
    root = Path(tempfile.mkdtemp(dir=model.parent))
    adapter, merged = root / "adapter", shutil.copytree(model, root / "merged")
    adapter.mkdir()
    weights, tensors = load_file(model / "model.safetensors"), dict(replaced or {})
    generator = torch.Generator().manual_seed(5)
    for name in sorted(weights):
        module = name.removesuffix(".weight")
        if not module.endswith(tuple(leaves)) or weights[name].dim() != 2:
            continue
        outputs, inputs = weights[name].shape[::-1] if transposed else weights[name].shape
        rank = _by_end(ranks or {}, module, 4)
        a = (torch.randn(rank, inputs, generator=generator) * 0.3).to(dtype)
        b = (torch.randn(outputs, rank, generator=generator) * 0.3).to(dtype)
        tensors[PREFIX + tensor_name.format(module, "A")] = a
        tensors[PREFIX + tensor_name.format(module, "B")] = b
        delta = b.float() @ a.float()
        weights[name] = weights[name] + (delta.T if transposed else delta) * _by_end(scalings or {}, module, 2.0)
    save_file(
        {n if n.startswith(PREFIX) else PREFIX + n: t for n, t in tensors.items()},
        adapter / "adapter_model.safetensors",
    )
    save_file(weights | dict(replaced or {}), merged / "model.safetensors", metadata={"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return adapter, merged


def _by_end(values: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for end, value in values.items() if module.endswith(end)), default)
