"""Models without experts whose layers are attention and a feed-forward network."""

from transformers import PretrainedConfig

from tests.samples.gguf_families.common import HALF, PLAIN, YARN, as_it_is, few_bits, in_pairs, nothing, rotary_part
from tests.samples.gguf_families.writing import Metadata, Sample

MULTIPLIERS = {
    **{"attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 2.0},
}


def multipliers(config: PretrainedConfig) -> Metadata:
    return {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def sections(config: PretrainedConfig) -> Metadata:
    """Of models that read images: how rotary positions are shared among time, height and width."""
    return {"rope.dimension_sections": [2, 1, 1, 0], "n_deepstack_layers": 3}


def ministral3_metadata(config: PretrainedConfig) -> Metadata:
    return {
        "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": config.rope_parameters["llama_4_scaling_beta"],
    }


DENSE: dict[str, Sample] = {
    "smollm3": Sample(
        "smollm3",
        "smollm3",
        {"rope_parameters": PLAIN, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
        nothing,
        in_pairs,
        few_bits,
    ),
    "olmo2": Sample("olmo2", "olmo2", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "olmo3": Sample(
        "olmo3",
        "olmo2",
        {},
        lambda c: {
            "attention.sliding_window": c.sliding_window,
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in c.layer_types],
        },
        as_it_is,
    ),
    "seed_oss": Sample("seed_oss", "seed_oss", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "granite": Sample("granite", "granite", {"rope_parameters": PLAIN, **MULTIPLIERS}, multipliers, in_pairs, few_bits),
    "glm4": Sample(
        "glm4",
        "glm4",
        HALF,
        lambda c: {"rope.dimension_count": rotary_part(c)},
        as_it_is,
        few_bits,
    ),
    "ernie4_5": Sample("ernie4_5", "ernie4_5", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits),
    "hunyuan-dense": Sample(
        "hunyuan_v1_dense", "hunyuan-dense", {"rope_parameters": PLAIN}, nothing, as_it_is, few_bits
    ),
    "exaone4": Sample(
        "exaone4",
        "exaone4",
        {"rope_parameters": PLAIN, "sliding_window": 8, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        lambda c: {"attention.sliding_window": c.sliding_window},
        as_it_is,
        few_bits,
    ),
    "mistral3": Sample(
        "ministral3",
        "mistral3",
        {
            "sliding_window": None,
            "rope_parameters": {**YARN, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5}
            | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
        ministral3_metadata,
        in_pairs,
        few_bits,
    ),
    "qwen2vl": Sample("qwen2", "qwen2vl", {"rope_parameters": PLAIN}, sections, as_it_is, few_bits),
    "qwen3vl": Sample("qwen3", "qwen3vl", {"rope_parameters": PLAIN}, sections, as_it_is, few_bits),
}
