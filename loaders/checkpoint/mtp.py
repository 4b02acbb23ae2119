"""The head for multi-token prediction that checkpoints hold beside their layers: which tensors it is. No torch.

A head is one decoder layer of the model's own kind between two projections: it joins the embedding of a token with the
model's hidden state of the token before, and predicts the token after (DeepSeek-V3, arXiv 2412.19437, section 2.2).
Two layouts are published, and both are given here the names of a model of one layer, whose embeddings join the two:

    joined embeddings     one more layer     beside the model
    embed_tokens.enorm    enorm              mtp.pre_fc_norm_embedding
    embed_tokens.hnorm    hnorm              mtp.pre_fc_norm_hidden
    embed_tokens.eh_proj  eh_proj            mtp.fc
    layers.0              all other names    mtp.layers.0
    norm                  shared_head.norm   mtp.norm

Embeddings and output layer are the model's own; copies of them are left out. Of several heads the first is used, for
every level of a tree, as it is where a model has only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from loaders.checkpoint.spec import HeadSizes, ModelSpec
from loaders.errors import UnsupportedModelError
from loaders.formats.weights import Format, told_apart
from loaders.safetensors_files.headers import Checkpoint, StoredTensor
from loaders.text_part import text_values

# Heads of other families run if they are asked for, but are not chosen without being asked.
KNOWN_FAMILIES = {
    "deepseek_v3", "exaone_moe", "glm4_moe", "glm4_moe_lite", "mellum", "qwen3_5_moe_text", "qwen3_5_text",
    "qwen3_next", "solar_open", "step3p5",
}  # fmt: skip

EMBEDDINGS, LAYER, NORM = "model.embed_tokens.", "model.layers.0.", "model.norm."

_BESIDE = re.compile(r"((?:.*\.)?mtp\.)fc\.weight$")
_ONE_MORE = re.compile(r"((?:.*\.)?layers\.)(\d{1,6})\.eh_proj\.")
_OF_BESIDE = {
    "pre_fc_norm_embedding.": f"{EMBEDDINGS}enorm.",
    "pre_fc_norm_hidden.": f"{EMBEDDINGS}hnorm.",
    "fc.": f"{EMBEDDINGS}eh_proj.",
    "layers.0.": LAYER,
    "norm.": NORM,
}
_OF_ONE_MORE = {
    **{f"{name}.": f"{EMBEDDINGS}{name}." for name in ("enorm", "hnorm", "eh_proj")},
    **dict.fromkeys(("shared_head.norm.", "transformer.shared_head.norm."), NORM),
    **dict.fromkeys(("shared_head.", "transformer.shared_head.", "embed_tokens."), ""),  # copies of the model's own
    **dict.fromkeys(("mtp_block.", "transformer_block."), LAYER),
    "": LAYER,
}
_QUANTIZED = ("quantization_config", "compression_config", "quantization")


def has_known_head(model_type: str, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds a head, of a family whose heads are compared with transformers' own."""
    return model_type in KNOWN_FAMILIES and _layout(checkpoint) is not None


def head_checkpoint(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The tensors of the head in a checkpoint, under the names of a model of one layer.

    Raises UnsupportedModelError, naming the model `name`, where there is none.
    """
    layout = _layout(checkpoint)
    if layout is None:
        raise UnsupportedModelError(
            f"{name}: its files hold no head for multi-token prediction (tensors mtp.* or a layer with eh_proj), so "
            "--draft mtp finds nothing to draft with. Some publishers leave it out when they quantize.\n"
            "  --draft auto   takes a known draft, or looks up repetitions in the text\n"
            "  --draft MODEL  names a small model with the same tokens"
        )
    prefix, names = layout
    tensors = {tensor.name: tensor for tensor in _renamed(checkpoint.tensors, prefix, names)}
    return replace(checkpoint, tensors=tensors, absent={}, adapter=None)


def head_values(config: Mapping[str, Any], checkpoint: Checkpoint, packing: Format | None) -> dict[str, Any]:
    """The values of a config for the head alone. checkpoint: the head's; packing: the format of the whole model's.

    Heads are often stored as they are where the model is quantized.
    """
    values = {**text_values(config), "num_hidden_layers": 1, "tie_word_embeddings": False}
    values.pop("text_config", None)
    if packing is not None and not told_apart(packing, checkpoint).packed:
        values = {key: value for key, value in values.items() if key not in _QUANTIZED}
    return values


def as_head(spec: ModelSpec, target: ModelSpec) -> ModelSpec:
    """The spec of a head, as it was read from `head_values`, as a draft of its model."""
    sizes = HeadSizes(target.hidden_size, target.hidden_size)
    name = f"the head of {target.name}"
    return replace(spec, name=name, recurrent=False, states=None, not_read="", head=sizes, vocab_size=target.vocab_size)


def _layout(checkpoint: Checkpoint) -> tuple[str, Mapping[str, str]] | None:
    """What the names of the head begin with, and what the rest of them becomes; None without a head."""
    found: list[tuple[int, str]] = []
    for name in checkpoint.tensors:
        if beside := _BESIDE.match(name):
            return beside[1], _OF_BESIDE
        if one_more := _ONE_MORE.match(name):
            found.append((int(one_more[2]), f"{one_more[1]}{one_more[2]}."))
    return (min(found)[1], _OF_ONE_MORE) if found else None


def _renamed(tensors: Mapping[str, StoredTensor], prefix: str, names: Mapping[str, str]) -> Iterator[StoredTensor]:
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) :]
        begin = next((begin for begin in names if rest.startswith(begin)), None)
        if begin is not None and names[begin]:
            yield tensor.renamed(partial(_moved, len(prefix + begin), names[begin]))


def _moved(cut: int, start: str, name: str) -> str:
    return start + name[cut:]
