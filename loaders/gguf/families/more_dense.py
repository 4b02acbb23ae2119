"""Further models without experts, whose tensors are stored as they are or as Llama's."""

from __future__ import annotations

from loaders.errors import UnsupportedModelError
from loaders.gguf.families.architecture import Config, GgufArchitecture
from loaders.gguf.families.dense import DENSE, rotated, stated_layers
from loaders.gguf.families.names import ATTENTION, LATER_MLP_NORM, LLAMA, MLP, QK_NORMS
from loaders.gguf.header import GgufFile
from loaders.gguf.metadata import Metadata
from loaders.gguf.rotations import linear_or_yarn, rotations

NO_ROTATION_EVERY = 4  # layers, of SmolLM3: llama.cpp's constant


def _smollm3(metadata: Metadata) -> Config:
    rotates = [int((layer + 1) % NO_ROTATION_EVERY != 0) for layer in range(metadata.layers)]
    return {
        **rotated(metadata),
        "no_rope_layers": rotates,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * metadata.layers,
    }


def _olmo3(metadata: Metadata) -> Config:
    return {
        **rotated(metadata),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": stated_layers(metadata, 4),
    }


def _seed_oss(metadata: Metadata) -> Config:
    bias = "blk.0.attn_q.bias" in metadata.gguf.tensors
    return {**rotated(metadata), "attention_bias": bias, "attention_out_bias": False}


def granite(metadata: Metadata) -> Config:
    """Its four multipliers."""
    return {
        **rotated(metadata),
        "attention_multiplier": metadata.real("attention.scale"),
        "embedding_multiplier": metadata.real("embedding_scale", 1.0),
        "residual_multiplier": metadata.real("residual_scale", 1.0),
        "logits_scaling": metadata.real("logit_scale", 1.0),
    }


def _glm4(metadata: Metadata) -> Config:
    """Raises UnsupportedModelError for GLM-4V: llama.cpp's converter stores its queries and keys in another order."""
    if metadata.optional("rope.dimension_sections") is not None:
        raise UnsupportedModelError(
            f"{metadata.gguf.file}: it is of a GLM-4V model, whose queries and keys are stored in another order, which "
            "is not undone here. Use the original checkpoint in safetensors instead."
        )
    bias = "blk.0.attn_q.bias" in metadata.gguf.tensors
    return {"rope_parameters": rotations(metadata, partial=True), "attention_bias": bias}


def _gemma(metadata: Metadata) -> Config:
    return {**rotated(metadata), "hidden_act": "gelu_pytorch_tanh"}


def _exaone4(metadata: Metadata) -> Config:
    """Where layers have windows, every fourth has none, and rotates nothing."""
    window = metadata.optional("attention.sliding_window")
    kinds = ["full_attention"] * metadata.layers if window is None else stated_layers(metadata, 4)
    return {
        **rotated(metadata),
        "sliding_window": window if window is None else metadata.integer("attention.sliding_window"),
        "layer_types": kinds,
    }


def _ministral3(metadata: Metadata) -> Config:
    """Queries are scaled by their position. YaRN's own factor is 1 where a multiplier is stated."""
    parameters = linear_or_yarn(metadata, 1_000_000.0)
    if metadata.real("rope.scaling.yarn_log_multiplier", 0.0, 0.0, 10.0):
        parameters |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    beta = metadata.real("attention.temperature_scale", 0.0, 0.0, 10.0)
    border = parameters.get("original_max_position_embeddings", metadata.integer("context_length"))
    parameters |= {"llama_4_scaling_beta": beta, "original_max_position_embeddings": border}
    return {"rope_parameters": parameters, "sliding_window": metadata.optional("attention.sliding_window")}


POST_NORMS = {**LATER_MLP_NORM, "post_ffw_norm": "post_feedforward_layernorm"}
OLMO2 = {**{name: there for name, there in ATTENTION.items() if name != "attn_norm"}, **QK_NORMS, **MLP, **POST_NORMS}
HUNYUAN_NORMS = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
GLM4 = {
    **{name: there for name, there in LLAMA.items() if name != "ffn_gate"},
    "ffn_up": "mlp.gate_up_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
OLMO3 = GgufArchitecture("olmo3", "Olmo3ForCausalLM", OLMO2, _olmo3)

MORE_DENSE = {
    # Of models that read images, the text alone: their three rows of rotary positions are equal there.
    "qwen2vl": DENSE["qwen2"],
    "qwen3vl": DENSE["qwen3"],
    "gemma": GgufArchitecture("gemma", "GemmaForCausalLM", LLAMA, _gemma, norms_plus_one=True),
    "exaone4": GgufArchitecture("exaone4", "Exaone4ForCausalLM", OLMO2, _exaone4),
    "mistral3": GgufArchitecture("ministral3", "Ministral3ForCausalLM", LLAMA, _ministral3, paired=True),
    "smollm3": GgufArchitecture("smollm3", "SmolLM3ForCausalLM", LLAMA, _smollm3, paired=True),
    "olmo2": GgufArchitecture("olmo2", "Olmo2ForCausalLM", OLMO2, rotated),
    "seed_oss": GgufArchitecture("seed_oss", "SeedOssForCausalLM", {**ATTENTION, **LATER_MLP_NORM, **MLP}, _seed_oss),
    "granite": GgufArchitecture("granite", "GraniteForCausalLM", LLAMA, granite, paired=True),
    "glm4": GgufArchitecture("glm4", "Glm4ForCausalLM", GLM4, _glm4),
    "ernie4_5": GgufArchitecture("ernie4_5", "Ernie4_5ForCausalLM", LLAMA, rotated),
    "hunyuan-dense": GgufArchitecture(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", {**LLAMA, **HUNYUAN_NORMS}, rotated
    ),
}


def slides(gguf: GgufFile) -> bool:
    """Whether a file's layers see a window of the text: OLMo 3 among those of OLMo 2's architecture."""
    name = gguf.get("general.architecture", str)
    return bool(gguf.metadata.get(f"{name}.attention.sliding_window"))
