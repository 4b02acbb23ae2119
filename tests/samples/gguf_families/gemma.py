"""Gemma's models: norms with 1 added, or layers with sizes of their own."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from tests.samples.gguf_families.common import PLAIN, as_it_is, few_bits, nothing, offset_norms
from tests.samples.gguf_families.writing import Metadata, Sample


def gemma4_experts(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    ours = {
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
    end = next((end for end in ours if name.endswith(end)), None)
    yield (f"blk.{name.split('.')[2]}.{ours[end]}" if end else name), tensor


def gemma4_metadata(config: PretrainedConfig) -> Metadata:
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    width, layers = config.intermediate_size, range(config.num_hidden_layers)
    values = config.to_dict()
    narrow, wide = values["head_dim"], next(iter(values["per_layer_config"].values()))["head_dim"]
    return {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": slides,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "attention.key_length": wide,
        "attention.value_length": wide,
        "attention.key_length_swa": narrow,
        "attention.value_length_swa": narrow,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "feed_forward_length": [width if layer < first_shared else 2 * width for layer in layers],
        "rope.freq_base_swa": 10_000.0,
        "rope.dimension_count": wide,
    }


def gemma3n(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight" if name.endswith("correct_output_scale") else name, tensor


def gemma3n_metadata(config: PretrainedConfig) -> Metadata:
    normal = torch.distributions.Normal(0.0, 1.0)
    return {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "altup.active_idx": config.altup_active_idx,
        "altup.num_inputs": config.altup_num_inputs,
        "activation_sparsity_scale": [
            normal.icdf(torch.tensor(share)).item() for share in config.activation_sparsity_pattern
        ],
    }


GEMMA: dict[str, Sample] = {
    "gemma": Sample(
        "gemma",
        "gemma",
        {"rope_parameters": PLAIN, "tie_word_embeddings": True},
        nothing,
        as_it_is,
        few_bits,
        offset_norms,
    ),
    "gemma4": Sample(
        "gemma4_text",
        "gemma4",
        {"global_head_dim": 16, "tie_word_embeddings": True, "use_double_wide_mlp": True}
        | {"num_hidden_layers": 4, "num_kv_shared_layers": 2}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        gemma4_metadata,
        as_it_is,
        few_bits,
        more=lambda config: {"rope_freqs.weight": np.array([1.0] * 2 + [1e30] * 6, np.float32)},
    ),
    "gemma4 with experts": Sample(
        "gemma4_text",
        "gemma4",
        {"global_head_dim": 16, "tie_word_embeddings": True, "num_kv_shared_layers": 0, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0}
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
        lambda c: {
            **gemma4_metadata(c),
            "feed_forward_length": c.intermediate_size,
            "expert_used_count": c.top_k_experts,
            "expert_feed_forward_length": c.moe_intermediate_size,
        },
        gemma4_experts,
        few_bits,
        more=lambda config: {"rope_freqs.weight": np.array([1.0] * 2 + [1e30] * 6, np.float32)},
    ),
    "gemma3n": Sample(
        "gemma3n_text",
        "gemma3n",
        {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "tie_word_embeddings": True, "altup_active_idx": 1}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "laurel_rank": 4}
        | {"activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0], "intermediate_size": [64] * 4},
        gemma3n_metadata,
        gemma3n,
        few_bits,
        # published files hold keys and values of layers that take those of others
        more=lambda config: {f"blk.3.attn_{each}.weight": np.ones((16, 32), np.float32) for each in "kv"},
    ),
}
