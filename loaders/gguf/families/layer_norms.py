"""Norms that subtract the mean (Command R, StarCoder 2, StableLM, Phi 2, Nemotron), and MLPs without a gate."""

from __future__ import annotations

from loaders.errors import ModelFilesError
from loaders.gguf.families.architecture import EMBEDDINGS_AND_HEAD, Config, Divide, GgufArchitecture
from loaders.gguf.families.dense import rotated, stated_layers
from loaders.gguf.families.names import ATTENTION, LLAMA, MLP, QK_NORMS
from loaders.gguf.header import GgufArray, GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import rotations

FLOAT32 = 6  # the type of items of a list
STARCODER2_WINDOW = 4096  # of all published models; files do not say it


def _has(metadata: Metadata, name: str) -> bool:
    return f"blk.0.{name}" in metadata.gguf.tensors


def _cohere(metadata: Metadata) -> Config:
    return {
        **rotated(metadata),
        "logit_scale": metadata.real("logit_scale"),
        "use_qk_norm": _has(metadata, "attn_q_norm.weight"),
    }


def _cohere2(metadata: Metadata) -> Config:
    """Layers without a window rotate nothing."""
    return {
        **rotated(metadata),
        "logit_scale": metadata.real("logit_scale"),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": stated_layers(metadata, 4),
    }


def _starcoder2(metadata: Metadata) -> Config:
    return {
        **rotated(metadata),
        "use_bias": _has(metadata, "attn_q.bias"),
        "sliding_window": metadata.integer("attention.sliding_window", STARCODER2_WINDOW),
    }


def _stablelm(metadata: Metadata) -> Config:
    return {
        "rope_parameters": rotations(metadata, partial=True),
        "use_qkv_bias": _has(metadata, "attn_q.bias"),
        "qk_layernorm": _has(metadata, "attn_q_norm.weight"),
        "use_parallel_residual": not _has(metadata, "ffn_norm.weight"),
    }


def _phi2(metadata: Metadata) -> Config:
    return {"rope_parameters": rotations(metadata, partial=True), "hidden_act": "gelu_new"}


def _arcee(metadata: Metadata) -> Config:
    return {**rotated(metadata), "hidden_act": "relu2"}


def _nemotron(metadata: Metadata) -> Config:
    return {
        "rope_parameters": rotations(metadata, partial=True),
        "hidden_act": "relu2",
        "attention_bias": _has(metadata, "attn_q.bias"),
        "mlp_bias": _has(metadata, "ffn_up.bias"),
    }


def _activations(metadata: Metadata) -> list[GgufTensor]:
    """The learned values of Apertus' activation function, xIELU: a number for each layer, in lists of the metadata."""
    found = []
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        key, layers = f"xielu.{name}", metadata.layers
        value = metadata.gguf.metadata.get(key)
        if not isinstance(value, GgufArray) or (value.item_type, value.count) != (FLOAT32, layers):
            raise ModelFilesError(f"{metadata.gguf.file}: {key} must list a number for each of {layers} layers.")
        shape = (1,) if name.startswith("alpha") else ()
        for layer in range(layers):
            there = f"model.layers.{layer}.mlp.act_fn.{name}"
            found.append(GgufTensor(there, value.file, "F32", shape, value.offset + 4 * layer, 4, "F32", shape))
    return found


def _norm_of_each_head(name: str) -> Divide:
    """[heads, width]: the model has a norm for each head."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        if len(tensor.values) != 2:
            raise ModelFilesError(f"{tensor.file}: {tensor.name} must have a row for each head. Download it again.")
        heads = range(tensor.values[0])
        return [tensor.item(head).named(f"{layer}self_attn.{name}.norms.{head}.weight") for head in heads]

    return divide


def _joined(suffix: str) -> Divide:
    """Queries, keys and values in one, as older converters left them."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        heads, shared = metadata.integer("attention.head_count"), max(metadata.kv_heads)
        parts, row = [], 0
        for name, count in (("q", heads), ("k", shared), ("v", shared)):
            end = row + count * metadata.head_dim
            parts.append(tensor.rows(row, end).named(f"{layer}self_attn.{name}_proj.{suffix}"))
            row = end
        return parts

    return divide


PARALLEL = {**ATTENTION, **MLP}  # attention and MLP read the same norm
NO_GATE = {ours: there for ours, there in LLAMA.items() if ours != "ffn_gate"}
PHI2 = {**ATTENTION, "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
APERTUS = {**NO_GATE, **QK_NORMS, "attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}

LAYER_NORMS = {
    "command-r": GgufArchitecture(
        "cohere", "CohereForCausalLM", {**PARALLEL, **QK_NORMS}, _cohere, layer_norm="layer_norm_eps"
    ),
    "cohere2": GgufArchitecture("cohere2", "Cohere2ForCausalLM", PARALLEL, _cohere2, layer_norm="layer_norm_eps"),
    "starcoder2": GgufArchitecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {**NO_GATE, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        _starcoder2,
        layer_norm="norm_epsilon",
    ),
    "stablelm": GgufArchitecture(
        "stablelm",
        "StableLmForCausalLM",
        LLAMA,
        _stablelm,
        divided={
            "attn_q_norm.weight": _norm_of_each_head("q_layernorm"),
            "attn_k_norm.weight": _norm_of_each_head("k_layernorm"),
        },
        layer_norm="layer_norm_eps",
    ),
    "phi2": GgufArchitecture(
        "phi",
        "PhiForCausalLM",
        PHI2,
        _phi2,
        outside={**EMBEDDINGS_AND_HEAD, "output_norm": "model.final_layernorm"},
        divided={f"attn_qkv.{suffix}": _joined(suffix) for suffix in ("weight", "bias")},
        layer_norm="layer_norm_eps",
    ),
    "arcee": GgufArchitecture("arcee", "ArceeForCausalLM", NO_GATE, _arcee, paired=True),
    "apertus": GgufArchitecture(
        "apertus",
        "ApertusForCausalLM",
        APERTUS,
        lambda metadata: {**rotated(metadata), "hidden_act": "xielu"},
        further=_activations,
    ),
    "nemotron": GgufArchitecture(
        "nemotron", "NemotronForCausalLM", NO_GATE, _nemotron, layer_norm="norm_eps", norms_plus_one=True
    ),
}
