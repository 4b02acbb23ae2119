"""Translates a GGUF file's metadata and tensor names to transformers' for the same model.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the metadata do not
say (such as how Gemma scales its queries) follows the constants in llama.cpp.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.gguf.consistency import check_consistent
from loaders.gguf.header import GgufArray, GgufFile, GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import BASES, factors, linear_or_yarn, rotations
from loaders.gguf.vocabulary import MESSAGE_END, TOKENS, has_gguf_vocabulary, replies_in_messages

EMBEDDINGS_AND_HEAD = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LLAMA = {**ATTENTION, "ffn_norm": "post_attention_layernorm", **MLP}
GEMMA = {
    **ATTENTION,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **MLP,
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
# GGUF stacks the experts in one tensor; the star stands for the number of each.
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
MIXTRAL = {
    **ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
QWEN3_EXPERTS = {**ATTENTION, **QK_NORMS, "ffn_norm": "post_attention_layernorm", **EXPERTS}
IN_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
OUTSIDE = re.compile(r"(\w+)\.(weight|bias)")

# Factors of the rotary frequencies, which become part of the config.
ROTATIONS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Config = dict[str, Any]


@dataclass(frozen=True)
class GgufArchitecture:
    """What transformers calls an architecture of GGUF, and how its tensors differ.

    paired: query and key rows are stored interleaved, as pairs that are rotated together.
    norms_plus_one: norms are stored as the factor, which is 1 more than the model's weight.
    """

    model_type: str
    architecture: str
    layer: Mapping[str, str]
    settings: Callable[[Metadata], Config]
    paired: bool = False
    norms_plus_one: bool = False


def _llama(metadata: Metadata) -> Config:
    bias = "blk.0.attn_output.bias" in metadata.gguf.tensors
    return {"rope_parameters": rotations(metadata), "attention_bias": bias}


def _qwen(metadata: Metadata) -> Config:
    return {"rope_parameters": rotations(metadata)}


def _mixtral(metadata: Metadata) -> Config:
    return {
        "rope_parameters": rotations(metadata),
        "sliding_window": None,
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
    }


def _qwen3_experts(metadata: Metadata) -> Config:
    return {
        "rope_parameters": rotations(metadata),
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _phi3(metadata: Metadata) -> Config:
    """Longrope: long texts use other frequencies, and some models rotate only part of each head."""
    parameters = rotations(metadata, partial=True)
    config: Config = {"rope_parameters": parameters, "sliding_window": metadata.optional("attention.sliding_window")}
    if "rope_factors_short.weight" in metadata.gguf.tensors:
        border = metadata.integer("rope.scaling.original_context_length")
        parameters |= {
            "rope_type": "longrope",
            "short_factor": factors(metadata.gguf, "rope_factors_short.weight"),
            "long_factor": factors(metadata.gguf, "rope_factors_long.weight"),
            "attention_factor": metadata.real("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": border,
        }
        config["original_max_position_embeddings"] = border
    return config


def _gemma2(metadata: Metadata) -> Config:
    layers = metadata.integer("block_count")
    return {
        **_gemma(metadata, big=46),
        "attn_logit_softcapping": metadata.real("attn_logit_softcapping", 50.0, least=1),
        "final_logit_softcapping": metadata.real("final_logit_softcapping", 30.0, least=1),
        "rope_parameters": rotations(metadata),
        "layer_types": _alternating(layers, 2),
    }


def _gemma3(metadata: Metadata) -> Config:
    """Only full-attention layers use scaled RoPE."""
    local = metadata.real("rope.freq_base_swa", 10_000.0, *BASES)
    return {
        **_gemma(metadata, big=62),
        "rope_parameters": {
            "full_attention": linear_or_yarn(metadata, 1_000_000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "final_logit_softcapping": metadata.optional("final_logit_softcapping"),
        "layer_types": _stated_layers(metadata, 6),
    }


def _gemma(metadata: Metadata, big: int) -> Config:
    """Queries are scaled by the head width; in the largest model by the hidden size over the number of heads."""
    heads, width = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
    is_big = metadata.integer("block_count") == big
    return {
        "query_pre_attn_scalar": width // heads if is_big else metadata.head_dim,
        "sliding_window": metadata.integer("attention.sliding_window", 4096 if metadata.prefix == "gemma2" else None),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _stated_layers(metadata: Metadata, default: int) -> list[str]:
    """Every n-th layer uses full attention, unless the metadata list it per layer."""
    layers, pattern = metadata.integer("block_count"), metadata.optional("attention.sliding_window_pattern")
    if not isinstance(pattern, GgufArray):
        return _alternating(layers, metadata.integer("attention.sliding_window_pattern", default))
    if pattern.count != layers:
        raise ModelFilesError(f"{metadata.gguf.file}: {pattern.count} layers slide or not, but there are {layers}.")
    return ["sliding_attention" if slides else "full_attention" for slides in metadata.gguf.items(pattern)]


def _alternating(layers: int, every: int) -> list[str]:
    return ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(layers)]


FAMILIES = {
    "llama": GgufArchitecture("llama", "LlamaForCausalLM", LLAMA, _llama, paired=True),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM", LLAMA, _qwen),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM", {**LLAMA, **QK_NORMS}, _qwen),
    "phi3": GgufArchitecture("phi3", "Phi3ForCausalLM", PHI3, _phi3),
    "gemma2": GgufArchitecture("gemma2", "Gemma2ForCausalLM", GEMMA, _gemma2, norms_plus_one=True),
    "gemma3": GgufArchitecture("gemma3_text", "Gemma3ForCausalLM", {**GEMMA, **QK_NORMS}, _gemma3, norms_plus_one=True),
}
# The mixture-of-experts variants of architectures that also have dense models.
MIXTURES = {
    "llama": GgufArchitecture("mixtral", "MixtralForCausalLM", MIXTRAL, _mixtral, paired=True),
    "qwen3moe": GgufArchitecture("qwen3_moe", "Qwen3MoeForCausalLM", QWEN3_EXPERTS, _qwen3_experts),
}


def family_of(gguf: GgufFile) -> GgufArchitecture:
    """Raises UnsupportedModelError for an unknown architecture; the message lists the known ones."""
    name = gguf.get("general.architecture", str)
    mixture = bool(gguf.metadata.get(f"{name}.expert_count"))
    family = (MIXTURES if mixture else FAMILIES).get(name)
    if family is None:
        raise UnsupportedModelError(
            f"{gguf.file}: models of the architecture {name[:40]!r}{' with experts' * mixture} cannot be run from GGUF "
            f"files; {', '.join(FAMILIES)} can, and with experts {', '.join(MIXTURES)}. Use the original checkpoint in "
            "safetensors instead."
        )
    return family


def gguf_config(gguf: GgufFile) -> Config:
    """What the model's config.json would say. Raises ModelFilesError and UnsupportedModelError."""
    family = family_of(gguf)
    metadata = Metadata(gguf, gguf.get("general.architecture", str))
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.values) != 2:
        raise ModelFilesError(f"{gguf.file}: it holds no token_embd.weight. Is this a language model's file?")
    check_consistent(gguf, metadata)
    heads = metadata.integer("attention.head_count")
    config: Config = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": embedding.values[0],
        "hidden_size": metadata.integer("embedding_length"),
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": metadata.head_dim,
        "max_position_embeddings": metadata.integer("context_length"),
        "rms_norm_eps": metadata.real("attention.layer_norm_rms_epsilon", least=1e-12, most=1e-2),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(gguf),
        "pad_token_id": gguf.metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": _computed_in(gguf),
        **family.settings(metadata),
    }
    renamed = model_tensors(gguf)
    if any(tensor.is_packed for tensor in renamed.values()):
        config["quantization_config"] = {"quant_method": "gguf", "kind": _most_bytes(gguf)}
    return config


def _ends(gguf: GgufFile) -> list[int] | None:
    """The end-of-text token, and the end-of-turn and end-of-message tokens where they differ and end a reply."""
    ends = [gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    found = {end for end in ends if type(end) is int}
    if len(found) > 1 and has_gguf_vocabulary(gguf):
        tokens = gguf.items(gguf.metadata[TOKENS])
        if replies_in_messages(tokens):
            found = {end for end in found if not 0 <= end < len(tokens) or tokens[end] != MESSAGE_END}
    return sorted(found) or None


def _most_bytes(gguf: GgufFile) -> str:
    nbytes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        nbytes[tensor.kind] += tensor.nbytes
    return max(nbytes, key=nbytes.__getitem__)


def _computed_in(gguf: GgufFile) -> str:
    """Quantized weights come from bfloat16 models, and some of those overflow float16."""
    return DTYPES.get(_most_bytes(gguf), "bfloat16")


def model_tensors(gguf: GgufFile) -> dict[str, GgufTensor]:
    """The tensors by transformers' names, with what dequantizing has to undo.

    Raises UnsupportedModelError for a tensor that the model lacks: ignoring it would change the results.
    """
    family, prefix = family_of(gguf), gguf.get("general.architecture", str)
    metadata = Metadata(gguf, prefix)
    heads = metadata.integer("attention.head_count")
    pairs = {"attn_q": heads, "attn_k": metadata.integer("attention.head_count_kv", heads)} if family.paired else {}
    tensors: dict[str, GgufTensor] = {}
    for name, tensor in gguf.tensors.items():
        if name in ROTATIONS:
            continue
        leaf, renamed = _renamed(family, name)
        if renamed is None:
            raise UnsupportedModelError(
                f"{gguf.file}: it holds {name[:80]}, which transformers has no place for in a {prefix} model: without "
                "it the numbers would be others. Use the original checkpoint in safetensors instead."
            )
        less = 1.0 if family.norms_plus_one and leaf.endswith("norm") else 0.0
        if "*" not in renamed:
            tensors[renamed] = tensor.as_part(renamed, pairs.get(leaf, 0), less)
            continue
        if tensor.values[0] != metadata.integer("expert_count") or len(tensor.values) != 3:
            raise ModelFilesError(
                f"{gguf.file}: {name} has shape {list(tensor.values)}, but must have [experts, outputs, inputs] for "
                f"{metadata.integer('expert_count')} experts."
            )
        for index in range(tensor.values[0]):
            expert = tensor.slice(renamed.replace("*", str(index)), index)
            tensors[expert.name] = expert
    return tensors


def _renamed(family: GgufArchitecture, name: str) -> tuple[str, str | None]:
    """The module of the layer, and transformers' name of the tensor; None if it has none."""
    if match := IN_LAYER.fullmatch(name):
        part = family.layer.get(match[2])
        return match[2], part and f"model.layers.{int(match[1])}.{part}.{match[3]}"
    match = OUTSIDE.fullmatch(name)
    part = EMBEDDINGS_AND_HEAD.get(match[1]) if match else None
    return (match[1] if match else ""), part and match and f"{part}.{match[2]}"
