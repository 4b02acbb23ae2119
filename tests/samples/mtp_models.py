"""Tiny random models with a head for multi-token prediction beside their layers, in the two layouts that are published.

The head is a copy of the model's own last layer, a little changed, between random projections.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel

from tests.samples.multimodal import checkpoints as multimodal
from tests.samples.tiny_models import BASE, make_checkpoint

# How the config names the number of heads, and whether the head lies beside the model.
FAMILIES: dict[str, tuple[str, bool]] = {
    "deepseek_v3": ("num_nextn_predict_layers", False),
    "glm4_moe": ("num_nextn_predict_layers", False),
    "glm4_moe_lite": ("num_nextn_predict_layers", False),
    "mellum": ("num_nextn_predict_layers", True),
    "exaone_moe": ("", True),
    "solar_open": ("num_nextn_predict_layers", False),
    "qwen3_next": ("", True),
    "qwen3_5_text": ("mtp_num_hidden_layers", True),
    "qwen3_5_moe_text": ("mtp_num_hidden_layers", True),
}
_RECURRENT = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
LAYERS = BASE["num_hidden_layers"]


@cache
def model_with_head(family: str, noise: float = 0.05) -> Path:
    """The directory of such a model."""
    field, beside = FAMILIES[family]
    directory = make_checkpoint(family, 2, False, _RECURRENT if family.startswith("qwen") else {})
    config = json.loads((directory / "config.json").read_text())
    if field:
        config[field] = 1
    (directory / "config.json").write_text(json.dumps(config))
    return add_head(directory, beside, noise)


def add_head(directory: Path, beside: bool = True, noise: float = 0.05) -> Path:
    """Write a head into the weights of a model."""
    tensors = load_file(directory / "model.safetensors")
    tensors |= head_tensors(tensors, beside, noise)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def head_tensors(tensors: dict[str, torch.Tensor], beside: bool, noise: float) -> dict[str, torch.Tensor]:
    """The tensors of a head, under the names of one of the layouts."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    hidden = tensors["model.norm.weight"].shape[0]
    last = max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers."))
    own = f"model.layers.{last}."
    block = {name[len(own) :]: tensor for name, tensor in tensors.items() if name.startswith(own)}
    block = {name: tensor + noise * random(*tensor.shape) for name, tensor in block.items()}
    norm, projection = tensors["model.norm.weight"], random(hidden, 2 * hidden) / hidden**0.5
    norms = [norm + noise * random(hidden) for _ in range(3)]
    if beside:
        named = dict(zip(("pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight"), norms))
        named |= {"fc.weight": projection, **{f"layers.0.{name}": tensor for name, tensor in block.items()}}
        return {f"mtp.{name}": tensor for name, tensor in named.items()}
    named = dict(zip(("enorm.weight", "hnorm.weight", "shared_head.norm.weight"), norms))
    named |= {"eh_proj.weight": projection, **block, "shared_head.head.weight": tensors["lm_head.weight"].clone()}
    return {f"model.layers.{last + 1}.{name}": tensor for name, tensor in named.items()}


@cache
def multimodal_with_head(family: str = "step3p7") -> Path:
    """The same of a multimodal family, whose text model transformers runs by the class of the whole model alone."""
    source = multimodal.checkpoint(family)
    directory = Path(shutil.copytree(source, source.parent / f"{source.name} with a head"))
    config = json.loads((directory / "config.json").read_text())
    kind = {"mtp_layer_types": ["full_attention"], "mtp_mlp_layer_types": config["text_config"]["mlp_layer_types"][-1:]}
    config["text_config"] |= {"num_nextn_predict_layers": 1, **kind}
    (directory / "config.json").write_text(json.dumps(config))
    return add_head(directory, beside=False)


@cache
def transformers_head(directory: Path) -> tuple[PreTrainedModel, Any]:
    """The model and its head as transformers alone runs them, in float32."""
    from transformers.modeling_layers import MtpModel

    whole = AutoConfig.from_pretrained(directory)
    kind = AutoModelForCausalLM if whole.get_text_config(decoder=True) is whole else AutoModelForMultimodalLM
    model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    config = model.config.get_text_config(decoder=True)
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None) and not getattr(config, "mtp_layer_types", None):
        config.mtp_layer_types = ["full_attention"]
    if getattr(config, "mlp_layer_types", None) and not getattr(config, "mtp_mlp_layer_types", None):
        config.mtp_mlp_layer_types = ["sparse"]
    patterns = [*(model._keys_to_ignore_on_load_unexpected or []), rf"layers\.{LAYERS}\."]
    model._keys_to_ignore_on_load_unexpected = patterns
    return model, MtpModel.from_pretrained(model).eval()


@torch.no_grad()
def head_logits(directory: Path, text: list[int]) -> torch.Tensor:
    """What transformers' own head gives after each token but the first of a text, [len(text) - 1, vocab]."""
    from transformers.cache_utils import MtpCache

    model, head = transformers_head(directory)
    ids = torch.tensor([text])
    states = model(ids, output_hidden_states=True).hidden_states[-1][:, :-1]
    positions = torch.arange(1, len(text))[None]
    cache = MtpCache(config=model.config.get_mtp_config())
    return head._project_to_logits(head.forward_layer(0, states, positions, cache, input_ids=ids[:, 1:]))[0]


def save_known(directory: Path, table: torch.Tensor, of_token: torch.Tensor, of_feature: torch.Tensor) -> Path:
    """A model and a head whose distributions are known: every layer passes on what it gets.

    The model's logits after token x are ``table[:, x]``, float [vocab, vocab]. Its hidden state is x itself, as a unit
    vector. The head's hidden state is the direction of ``of_token @ x + of_feature @ y``, for the unit vectors of a
    token x and of its feature y; with that direction d, its logits are ``table @ d``.
    """
    vocabulary = table.shape[0]
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=vocabulary, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, eos_token_id=None,
        bos_token_id=1, rms_norm_eps=1e-12, max_position_embeddings=4096,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0 if weight.dim() == 1 else 0.0)
        model.get_input_embeddings().weight.fill_diagonal_(1.0)
        model.lm_head.weight.copy_(table / vocabulary**0.5)  # the final norm gives vectors of that length
    model.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    head = {
        name.replace("model.layers", "mtp.layers"): each.clone() for name, each in tensors.items() if ".layers." in name
    }
    norms = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    head |= {f"mtp.{name}.weight": torch.ones(vocabulary) for name in norms}
    head["mtp.fc.weight"] = torch.cat((of_token, of_feature), dim=1)
    save_file({**tensors, **head}, directory / "model.safetensors", {"format": "pt"})
    return directory
