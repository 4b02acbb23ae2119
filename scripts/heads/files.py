"""Writes a trained head as other programs read it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loaders.heads.eagle3 import Eagle3Head
from loaders.heads.eagle3_config import Eagle3Config


def write_head(
    head: Eagle3Head, folder: Path, layout: str, dtype: torch.dtype, target: Path, embeddings: torch.Tensor
) -> None:
    """`model.safetensors` and `config.json`. The speculators library wants a copy of the target's embeddings beside."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in head.state_dict().items()}
    if layout == "specforge":
        tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    else:
        tensors["embed_tokens.weight"] = embeddings.to(dtype).contiguous()
    if head.token_ids is not None:
        ids = head.token_ids.cpu()
        known = torch.zeros(head.head.vocab_size, dtype=torch.bool)
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": known.index_fill_(0, ids, True)}
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = _specforge(head.head, dtype) if layout == "specforge" else _speculators(head.head, dtype, target)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _specforge(config: Eagle3Config, dtype: torch.dtype) -> dict[str, Any]:
    """A tap is named by the layer whose output it is; without `draft_vocab_size` the output layer is the target's."""
    own = {"draft_vocab_size": config.draft_vocab_size} if config.maps_tokens else {}
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **config.layer,
        **own,
        "dtype": str(dtype).removeprefix("torch."),
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in config.taps],
            "use_aux_hidden_state": True,
        },
    }


def _speculators(config: Eagle3Config, dtype: torch.dtype, target: Path) -> dict[str, Any]:
    architectures = json.loads((target / "config.json").read_text()).get("architectures", [])
    return {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": config.draft_vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
        "eagle_aux_hidden_state_layer_ids": list(config.taps),
        "norm_before_residual": config.norm_before_residual,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "verifier": {"architectures": architectures, "name_or_path": str(target)},
        },
        "speculators_model_type": "eagle3",
        "transformer_layer_config": dict(config.layer),
    }
