"""Random draft heads, written in the layouts that are published."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loaders.heads.dflash import DflashHead, build_dflash
from loaders.heads.dflash_config import read_dflash
from loaders.heads.eagle3 import Eagle3Head, build_eagle3
from loaders.heads.eagle3_config import read_eagle3
from loaders.heads.kinds import Kind
from loaders.heads.target_facts import TargetFacts

LAYER = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
TARGET = TargetFacts("target", 3, 32, 96)
BLOCK = {"mask_token_id": 95, "block_size": 5, "target_layer_ids": [0, 2]}
SECOND = {"conv_kernel_size": 2, "conv_group_size": 8, "selector_rank": 6, "selector_top_k": 7}


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Weights and norms that are wide enough to tell one token from another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(std=0.3, generator=generator)


def eagle3_config(layout: str = "specforge", taps: tuple[int, ...] = (1, 2, 3), **fields: Any) -> dict[str, Any]:
    """A `config.json`; fields of LAYER among `fields` go where the layout has them."""
    layer = {**LAYER, **{key: fields.pop(key) for key in list(fields) if key in LAYER}}
    if layout == "specforge":
        stated = {"eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in taps]}
        return {"architectures": ["LlamaForCausalLMEagle3"], **layer, "eagle_config": stated, **fields}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_config": {"algorithm": "eagle3"},
        "transformer_layer_config": layer,
        "eagle_aux_hidden_state_layer_ids": list(taps),
        **fields,
    }


def write_eagle3(
    directory: Path,
    layout: str = "specforge",
    token_ids: Tensor | None = None,
    own_output: bool = True,
    seed: int = 0,
    target: TargetFacts = TARGET,
    **fields: Any,
) -> Eagle3Head:
    """Write a random head; returns its module in float32. token_ids: of a vocabulary that is a part of the target's."""
    if token_ids is not None:
        fields["draft_vocab_size"] = len(token_ids)
    config = eagle3_config(layout, **fields)
    read = read_eagle3(directory / "config.json", config, target)
    head = build_eagle3(read, torch.float32, "sdpa", layout == "speculators", own_output).eval()
    randomize(head, seed)
    head.token_ids = token_ids
    tensors = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    if layout == "specforge":
        tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    if token_ids is not None:
        tensors["d2t"] = token_ids - torch.arange(len(token_ids))
        tensors["t2d"] = torch.zeros(read.vocab_size, dtype=torch.bool).index_fill_(0, token_ids, True)
    _write(directory, config, tensors)
    return head


def write_known_eagle3(directory: Path, of_token: Tensor) -> None:
    """A head for a target of `mtp_models.save_known`, whose hidden state at a token x is ``of_token @ x``.

    of_token: float [vocab, vocab], with columns of length 1. The target's hidden states are joined to nothing. Each
    row attends to itself alone: its values take away what it reads of the row above, and put its own in that place.
    """
    size = len(of_token)
    sizes = {"hidden_size": size, "vocab_size": size, "head_dim": size // 4, "num_key_value_heads": 4}
    facts, alike = TargetFacts("target", 1, size, size), torch.full((size, size), 100.0)
    head = write_eagle3(directory, own_output=False, target=facts, taps=(1, 1, 1), rms_norm_eps=1e-12, **sizes)
    nothing, own = torch.zeros(size, size), torch.eye(size)
    known = {
        "fc.weight": torch.zeros(size, 3 * size),
        "norm.weight": torch.ones(size),
        **{f"midlayer.{name}.weight": torch.ones(size) for name in ("hidden_norm", "input_layernorm")},
        **{f"midlayer.self_attn.{name}_proj.weight": torch.cat((alike, nothing), dim=1) for name in "qk"},
        "midlayer.self_attn.v_proj.weight": torch.cat((of_token, -own), dim=1) / size**0.5,  # of normalized rows
        "midlayer.self_attn.o_proj.weight": own,
        "midlayer.mlp.down_proj.weight": torch.zeros_like(head.layers[0].mlp.down_proj.weight),
    }
    change(directory, **{name: tensor.contiguous() for name, tensor in known.items()})


def dflash_config(layout: str = "authors", second: bool = False, **fields: Any) -> dict[str, Any]:
    """A `config.json` of a block draft."""
    layer = {**LAYER, "model_type": "qwen3", "num_hidden_layers": 2}
    layer |= {key: fields.pop(key) for key in list(fields) if key in (*LAYER, "layer_types", "sliding_window")}
    own = {**BLOCK, **(SECOND if second else {}), **fields}
    if layout == "authors":
        name = "DFlash2DraftModel" if second else "DFlashDraftModel"
        causal = {"is_causal": own.pop("is_causal")} if "is_causal" in own else {}
        return {"architectures": [name], **layer, **causal, "dflash_config": own}
    own["aux_hidden_state_layer_ids"] = [layer + 1 for layer in own.pop("target_layer_ids")]
    kind = "dflash2" if second else "dflash"
    return {"speculators_model_type": kind, "transformer_layer_config": layer, **own}


def write_dflash(
    directory: Path,
    layout: str = "authors",
    second: bool = False,
    seed: int = 0,
    target: TargetFacts = TARGET,
    **fields: Any,
) -> DflashHead:
    """Write a random block draft; returns its module in float32."""
    config = dflash_config(layout, second, **fields)
    kind = Kind.DFLASH2 if second else Kind.DFLASH
    head = build_dflash(
        read_dflash(directory / "config.json", config, kind, target), torch.float32, "sdpa", False
    ).eval()
    randomize(head, seed)
    tensors = {name.replace("codebook.weight", "codebook"): one.clone() for name, one in head.state_dict().items()}
    _write(directory, config, tensors)
    return head


def change(directory: Path, removed: str = "", **tensors: Tensor) -> None:
    """Replace tensors of a written head, and remove one."""
    file = directory / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if name != removed}
    save_file({**kept, **tensors}, file)


def _write(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
