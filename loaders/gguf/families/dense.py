"""Models without experts, each of whose layers is attention and one feed-forward network."""

from __future__ import annotations

from loaders.errors import ModelFilesError
from loaders.gguf.families.architecture import Config, GgufArchitecture
from loaders.gguf.families.names import GEMMA, LLAMA, PHI3, QK_NORMS
from loaders.gguf.header import GgufArray
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import BASES, factors, linear_or_yarn, rotations


def rotated(metadata: Metadata) -> Config:
    """Of models whose other values have the names that all have."""
    return {"rope_parameters": rotations(metadata)}


def _llama(metadata: Metadata) -> Config:
    bias = "blk.0.attn_output.bias" in metadata.gguf.tensors
    return {"rope_parameters": rotations(metadata), "attention_bias": bias}


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
        "layer_types": alternating(layers, 2),
    }


def _gemma3(metadata: Metadata) -> Config:
    return {
        **_gemma(metadata, big=62),
        **scaled_full_attention(metadata),
        "final_logit_softcapping": metadata.optional("final_logit_softcapping"),
        "layer_types": stated_layers(metadata, 6),
    }


def scaled_full_attention(metadata: Metadata) -> Config:
    """Gemma's layers with a window have a base of their own, and no scaling."""
    local = metadata.real("rope.freq_base_swa", 10_000.0, *BASES)
    return {
        "rope_parameters": {
            "full_attention": linear_or_yarn(metadata, 1_000_000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
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


def stated_layers(metadata: Metadata, default: int) -> list[str]:
    """Every n-th layer uses full attention, unless the metadata list it per layer."""
    layers, pattern = metadata.layers, metadata.optional("attention.sliding_window_pattern")
    if not isinstance(pattern, GgufArray):
        return alternating(layers, metadata.integer("attention.sliding_window_pattern", default))
    if pattern.count not in (layers, metadata.integer("block_count")):
        raise ModelFilesError(f"{metadata.gguf.file}: {pattern.count} layers slide or not, but there are {layers}.")
    kinds = ["sliding_attention" if slides else "full_attention" for slides in metadata.gguf.items(pattern)]
    return kinds[:layers]


def alternating(layers: int, every: int) -> list[str]:
    return ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(layers)]


DENSE = {
    "llama": GgufArchitecture("llama", "LlamaForCausalLM", LLAMA, _llama, paired=True),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM", LLAMA, rotated),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM", {**LLAMA, **QK_NORMS}, rotated),
    "phi3": GgufArchitecture("phi3", "Phi3ForCausalLM", PHI3, _phi3),
    "gemma2": GgufArchitecture("gemma2", "Gemma2ForCausalLM", GEMMA, _gemma2, norms_plus_one=True),
    "gemma3": GgufArchitecture("gemma3_text", "Gemma3ForCausalLM", {**GEMMA, **QK_NORMS}, _gemma3, norms_plus_one=True),
}
