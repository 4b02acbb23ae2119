"""Tiny random multimodal checkpoints, made on the spot once per process, as `tiny_models` makes others."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMultimodalLM, PretrainedConfig

from tests.samples import tiny_models
from tests.samples.multimodal.families import CONFIGS, OTHER_TEXTS, text_changes
from tests.samples.tiny_models import BASE, save

# What makes a part for images or sound small, by the names that configs have for it.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "embed_dim", "d_model", "intermediate_size", "out_hidden_size", "projection_dim", "output_dim",
         "encoder_ffn_dim", "vision_output_dim", "projector_input_dim", "projector_output_dim", "encoder_hidden_size",
         "text_hidden_size", "projector_hidden_size", "hidden_dim"),
        32,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "depth", "num_layers", "num_attention_heads", "num_heads", "num_key_value_heads",
         "encoder_layers", "encoder_attention_heads"),
        2,
    ),
    **{"head_dim": 16, "num_global_layers": 1, "max_position_embeddings": 64},
}  # fmt: skip
_EXCHANGED = {"qwen3_vl_moe"}  # published with experts [inputs, outputs]


@cache
def checkpoint(family: str, seed: int = 2, shard_size: str = "50GB", **changes: Any) -> Path:
    """Directory of a random model of a family, made at the first call. `changes` are values of the whole config."""
    config = tiny_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.2 * torch.randn_like(weight)
        if getattr(config, "tie_word_embeddings", False):  # else every token predicts itself
            model.get_input_embeddings().weight *= 0.03
    directory = save(model, shard_size)
    return _as_published(directory) if family in _EXCHANGED else directory


def _as_published(directory: Path) -> Path:
    """Exchange the last two dimensions of the experts' matrices, which transformers reads either way."""
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        exchanged = {name: tensor.mT.contiguous() for name, tensor in tensors.items() if ".mlp.experts." in name}
        save_file(tensors | exchanged, file, {"format": "pt"})
    return directory


def tiny_config(family: str) -> PretrainedConfig:
    model_type, text_type = OTHER_TEXTS.get(family, (family, None))
    kind, changes = CONFIG_MAPPING[model_type], CONFIGS.get(model_type, {})
    defaults, parts = kind(), {}
    for name, of_part in kind.sub_configs.items():
        default = getattr(defaults, name, None) or (of_part() if of_part is not AutoConfig else None)
        if default is None:
            continue
        if name == "text_config":
            text = text_type or default.model_type
            parts[name] = {**BASE, **text_changes(text), "model_type": text}
        else:
            parts[name] = {**_small(default.to_dict()), **changes.get(name, {})}
    return kind(**{**changes, **parts})


def _small(values: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: size for name, size in _SIZES.items() if type(values.get(name)) is int}
    ratio = {"mlp_ratio": type(values["mlp_ratio"])(1)} if type(values.get("mlp_ratio")) in (int, float) else {}
    return {**values, **sizes, **ratio, **({"layer_types": None} if "layer_types" in values else {})}


# As of the text models, with the class of the whole model: its text for token ids alone.
perturbed = partial(tiny_models.perturbed, kind=AutoModelForMultimodalLM)
reference = partial(tiny_models.reference, kind=AutoModelForMultimodalLM)
greedy = partial(tiny_models.greedy, kind=AutoModelForMultimodalLM)
