"""Norms that subtract the mean, and MLPs without a gate."""

import re
from collections.abc import Iterator

from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.common import HALF, PLAIN, as_it_is, few_bits, in_pairs, nothing
from tests.samples.gguf_families.writing import Metadata, Sample, Tensors


def cohere(config: PretrainedConfig) -> Metadata:
    return {"logit_scale": config.logit_scale, "rope.scaling.type": "none"}


def cohere2(config: PretrainedConfig) -> Metadata:
    return {
        **cohere(config),
        "attention.sliding_window": config.sliding_window,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }


def partly_rotated(config: PretrainedConfig) -> Metadata:
    width = config.hidden_size // config.num_attention_heads
    return {"rope.dimension_count": int(width * config.rope_parameters["partial_rotary_factor"])}


def joined(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Norms of heads in one tensor, as `with_experts_stacked` left them."""
    if found := re.search(r"([qk])_layernorm", name):
        yield f"blk.{name.split('.')[2]}.attn_{found[1]}_norm.weight", tensor
    else:
        yield name, tensor


def apertus(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if ".act_fn." not in name:
        yield name, tensor


def activations(tensors: Tensors) -> Metadata:
    """A number for each layer."""
    layers = range(sum(name.endswith("act_fn.beta") for name in tensors))
    return {
        f"xielu.{leaf}": [tensors[f"model.layers.{layer}.mlp.act_fn.{leaf}"].item() for layer in layers]
        for leaf in ("alpha_p", "alpha_n", "beta", "eps")
    }


LAYER_NORMS: dict[str, Sample] = {
    "command-r": Sample(
        "cohere", "command-r", {"rope_parameters": PLAIN, "tie_word_embeddings": True}, cohere, as_it_is, few_bits
    ),
    "command-r plus": Sample(
        "cohere",
        "command-r",
        {"rope_parameters": PLAIN, "tie_word_embeddings": True, "use_qk_norm": True},
        cohere,
        as_it_is,
        few_bits,
    ),
    "cohere2": Sample(
        "cohere2",
        "cohere2",
        {"rope_parameters": PLAIN, "tie_word_embeddings": True, "num_hidden_layers": 4, "sliding_window": 8}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        cohere2,
        as_it_is,
        few_bits,
    ),
    "starcoder2": Sample(
        "starcoder2", "starcoder2", {"rope_parameters": PLAIN, "sliding_window": 4096}, nothing, as_it_is, few_bits
    ),
    "stablelm": Sample("stablelm", "stablelm", {**HALF, "use_qkv_bias": True}, partly_rotated, joined, few_bits),
    "stablelm 2": Sample(
        "stablelm",
        "stablelm",
        {**HALF, "use_parallel_residual": True, "qk_layernorm": True},
        partly_rotated,
        joined,
        few_bits,
    ),
    "phi2": Sample("phi", "phi2", {**HALF, "num_key_value_heads": 4}, partly_rotated, as_it_is, few_bits),
    "arcee": Sample("arcee", "arcee", {"rope_parameters": PLAIN}, nothing, in_pairs, few_bits),
    "apertus": Sample(
        "apertus", "apertus", {"rope_parameters": PLAIN}, nothing, apertus, few_bits, of_tensors=activations
    ),
    "nemotron": Sample(
        "nemotron",
        "nemotron",
        HALF,
        partly_rotated,
        as_it_is,
        few_bits,
        lambda name: name.endswith("norm.weight"),
    ),
}
