"""Layers of Mamba between layers of attention, or beside it: Granite 4.0 hybrids, Falcon-H1, Nemotron-H, and Jamba."""

from __future__ import annotations

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.gguf.families.architecture import EMBEDDINGS_AND_HEAD, Config, Divide, GgufArchitecture
from loaders.gguf.families.dense import rotated
from loaders.gguf.families.expert_stacks import joined_experts, joined_shared_expert
from loaders.gguf.families.experts import routed_by_sigmoid
from loaders.gguf.families.more_dense import granite
from loaders.gguf.families.names import ATTENTION, MLP_NORM
from loaders.gguf.families.short_convolutions import kernel_of_each_channel
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata


def _mixer(metadata: Metadata) -> Config:
    """transformers' names in Granite and Falcon-H1."""
    heads = metadata.integer("ssm.time_step_rank")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": metadata.integer("ssm.inner_size") // heads,
        "mamba_d_state": metadata.integer("ssm.state_size"),
        "mamba_n_groups": metadata.integer("ssm.group_count"),
        "mamba_d_conv": metadata.integer("ssm.conv_kernel"),
        "mamba_conv_bias": _holds(metadata, "ssm_conv1d.bias"),
    }


def _holds(metadata: Metadata, leaf: str) -> bool:
    """Whether a layer has such a tensor."""
    return any(name.endswith(f".{leaf}") for name in metadata.gguf.tensors)


def _granite_hybrid(metadata: Metadata) -> Config:
    """Layers without heads of keys and values are of Mamba. Raises UnsupportedModelError for Bamba."""
    if metadata.flag("rope.scaling.finetuned", False):
        raise UnsupportedModelError(
            f"{metadata.gguf.file}: it is of a Bamba model, of whose rotations GGUF files do not say which part of a "
            "head they take. Use the original checkpoint in safetensors instead."
        )
    multipliers = granite(metadata)
    inner = metadata.integer("ssm.inner_size")
    return {
        **multipliers,
        **_mixer(metadata),
        "mamba_expand": inner // metadata.integer("embedding_length"),
        "position_embedding_type": None,
        "layer_types": ["attention" if heads else "mamba" for heads in metadata.kv_heads[: metadata.layers]],
        "num_local_experts": 0,
        "shared_intermediate_size": metadata.integer("expert_shared_feed_forward_length", metadata.inner),
    }


def _granite_hybrid_experts(metadata: Metadata) -> Config:
    return {
        **_granite_hybrid(metadata),
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
    }


def _falcon_h1(metadata: Metadata) -> Config:
    """Its multipliers are part of the stored weights. Raises UnsupportedModelError where one of them is lost so."""
    if "output.weight" not in metadata.gguf.tensors:
        raise UnsupportedModelError(
            f"{metadata.gguf.file}: its output layer is the embedding, into which the converter multiplied the "
            "embedding's factor, and the output's is not stated. Use the original checkpoint in safetensors instead."
        )
    inner = metadata.integer("ssm.inner_size")
    return {
        **rotated(metadata),
        **_mixer(metadata),
        "mamba_d_ssm": inner,
        "mamba_rms_norm": _holds(metadata, "ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "mlp_multipliers": [1.0, 1.0],
        "ssm_multipliers": [1.0] * 5,
    }


def _nemotron_h(metadata: Metadata) -> Config:
    """A layer is one of attention, an MLP, or Mamba: by its heads and its width, of which at most one is positive."""
    heads = metadata.integer("ssm.time_step_rank")
    each = zip(metadata.kv_heads[: metadata.layers], metadata.inners, strict=False)
    wide = "moe" if metadata.optional("expert_count") else "mlp"
    return {
        "layer_norm_epsilon": metadata.real("attention.layer_norm_rms_epsilon"),
        "layers_block_type": ["attention" if shared else wide if inner else "mamba" for shared, inner in each],
        "mamba_num_heads": heads,
        "mamba_head_dim": metadata.integer("ssm.inner_size") // heads,
        "ssm_state_size": metadata.integer("ssm.state_size"),
        "n_groups": metadata.integer("ssm.group_count"),
        "conv_kernel": metadata.integer("ssm.conv_kernel"),
        "use_conv_bias": _holds(metadata, "ssm_conv1d.bias"),
        "mlp_hidden_act": "relu2",
    }


def _nemotron_h_experts(metadata: Metadata) -> Config:
    latent = metadata.optional("moe_latent_size")
    routed = routed_by_sigmoid(metadata)
    del routed["first_k_dense_replace"]
    return {
        **_nemotron_h(metadata),
        **routed,
        "moe_shared_expert_intermediate_size": metadata.integer("expert_shared_feed_forward_length"),
        "moe_latent_size": latent and metadata.integer("moe_latent_size"),
    }


def _jamba(metadata: Metadata) -> Config:
    """Mamba 1. Raises ModelFilesError where layers of attention, or with experts, do not come at equal distances."""
    attention = [layer for layer, heads in enumerate(metadata.kv_heads[: metadata.layers]) if heads]
    routers = [f"blk.{layer}.ffn_gate_inp.weight" in metadata.gguf.tensors for layer in range(metadata.layers)]
    routed = [layer for layer, has_router in enumerate(routers) if has_router]
    attention_period, attention_offset = _every(metadata, attention)
    expert_period, expert_offset = _every(metadata, routed) if routed else (2, 1)
    return {
        "attn_layer_period": attention_period,
        "attn_layer_offset": attention_offset,
        "expert_layer_period": expert_period,
        "expert_layer_offset": expert_offset,
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "mamba_d_state": metadata.integer("ssm.state_size"),
        "mamba_d_conv": metadata.integer("ssm.conv_kernel"),
        "mamba_expand": metadata.integer("ssm.inner_size") // metadata.integer("embedding_length"),
        "mamba_dt_rank": metadata.integer("ssm.time_step_rank"),
        "mamba_conv_bias": _holds(metadata, "ssm_conv1d.bias"),
        "use_mamba_kernels": False,  # which need a package of their own
    }


def _every(metadata: Metadata, layers: list[int]) -> tuple[int, int]:
    """The distance between layers, and the first of them."""
    first = min(layers, default=0)
    distance = layers[1] - first if len(layers) > 1 else max(metadata.layers, first + 1)
    if layers != [*range(first, metadata.layers, distance)] or first >= distance:
        raise ModelFilesError(f"{metadata.gguf.file}: layers {layers!r:.60} are of a kind, which no Jamba model has.")
    return distance, first


def _decay(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """Stored as -exp of the model's values, [channels, states]."""
    return [tensor.named(f"{layer}mamba.A_log", negated_log=True)]


def _of_each_head(name: str, negated_log: bool = False) -> Divide:
    """[heads, 1], in the model a row. negated_log: stored as -exp of the model's values."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        return [tensor.named(f"{layer}{name}", negated_log, shape=tensor.values[:1])]

    return divide


def _grouped_norm(name: str) -> Divide:
    """[groups, width], in the model a row."""

    def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        return [tensor.named(f"{layer}{name}", shape=(metadata.integer("ssm.inner_size"),))]

    return divide


def _mamba(module: str) -> dict[str, str]:
    return {
        "ssm_in": f"{module}.in_proj",
        "ssm_out": f"{module}.out_proj",
        "ssm_conv1d.bias": f"{module}.conv1d.bias",
    }


def _reshaped(module: str) -> dict[str, Divide]:
    return {
        "ssm_conv1d.weight": kernel_of_each_channel(f"{module}.conv1d"),
        "ssm_a": _of_each_head(f"{module}.A_log", negated_log=True),
        "ssm_d": _of_each_head(f"{module}.D"),
        "ssm_norm.weight": _grouped_norm(f"{module}.norm.weight"),
    }


GRANITE_HYBRID = {**ATTENTION, **MLP_NORM, **_mamba("mamba"), "ssm_dt.bias": "mamba.dt_bias"}
FALCON_H1 = {
    **ATTENTION,
    **_mamba("mamba"),
    "ssm_dt.bias": "mamba.dt_bias",
    **dict.fromkeys(("ffn_norm", "ffn_norm.weight"), "pre_ff_layernorm.weight"),  # files leave the suffix out
    **{f"ffn_{name}": f"feed_forward.{name}_proj" for name in ("gate", "up", "down")},
}
NEMOTRON_H = {
    **_mamba("mixer"),
    "ssm_dt.bias": "mixer.dt_bias",
    **{ours: there.replace("self_attn", "mixer") for ours, there in ATTENTION.items()},
    "attn_norm": "norm",
}
JAMBA = {
    **ATTENTION,
    **_mamba("mamba"),
    "ssm_dt": "mamba.dt_proj",
    "ssm_x": "mamba.x_proj",
    "ssm_d": "mamba.D",
    **{f"ssm_{name}_norm": f"mamba.{name}_layernorm" for name in ("dt", "b", "c")},
    "ffn_norm": "pre_ff_layernorm",
    "ffn_gate_inp": "feed_forward.router",
    **{f"ffn_{name}": f"feed_forward.{name}_proj" for name in ("gate", "up", "down")},
}
NEMOTRON_H_OUTSIDE = {"token_embd": "model.embeddings", "output_norm": "model.norm_f", "output": "lm_head"}

MAMBA = {
    "granitehybrid": GgufArchitecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {**GRANITE_HYBRID, "ffn_down": "shared_mlp.output_linear"},
        _granite_hybrid,
        divided={**_reshaped("mamba"), **joined_shared_expert("shared_mlp.input_linear", "")},
        paired=True,
    ),
    "falcon-h1": GgufArchitecture(
        "falcon_h1",
        "FalconH1ForCausalLM",
        FALCON_H1,
        _falcon_h1,
        outside={**EMBEDDINGS_AND_HEAD, "output_norm": "model.final_layernorm"},
        divided=_reshaped("mamba"),
    ),
    "nemotron_h": GgufArchitecture(
        "nemotron_h",
        "NemotronHForCausalLM",
        {**NEMOTRON_H, "ffn_up": "mixer.up_proj", "ffn_down": "mixer.down_proj"},
        _nemotron_h,
        outside=NEMOTRON_H_OUTSIDE,
        divided=_reshaped("mixer"),
    ),
}
MAMBA_WITH_EXPERTS = {
    "granitehybrid": GgufArchitecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {**GRANITE_HYBRID, "ffn_gate_inp": "block_sparse_moe.router", "ffn_down_shexp": "shared_mlp.output_linear"},
        _granite_hybrid_experts,
        divided={
            **_reshaped("mamba"),
            **joined_experts("block_sparse_moe.experts"),
            **joined_shared_expert("shared_mlp.input_linear"),
        },
        paired=True,
    ),
    "jamba": GgufArchitecture(
        "jamba",
        "JambaForCausalLM",
        JAMBA,
        _jamba,
        outside={**EMBEDDINGS_AND_HEAD, "output_norm": "model.final_layernorm"},
        divided={
            "ssm_conv1d.weight": kernel_of_each_channel("mamba.conv1d"),
            "ssm_a": _decay,
            **joined_experts("feed_forward.experts"),
        },
    ),
    "nemotron_h_moe": GgufArchitecture(
        "nemotron_h",
        "NemotronHForCausalLM",
        {
            **NEMOTRON_H,
            "ffn_gate_inp": "mixer.gate",
            "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
            "ffn_up_exps.weight": "mixer.experts.up_proj",
            "ffn_down_exps.weight": "mixer.experts.down_proj",
            "ffn_up_shexp": "mixer.shared_experts.up_proj",
            "ffn_down_shexp": "mixer.shared_experts.down_proj",
            "ffn_latent_down": "mixer.fc1_latent_proj",
            "ffn_latent_up": "mixer.fc2_latent_proj",
        },
        _nemotron_h_experts,
        outside=NEMOTRON_H_OUTSIDE,
        divided=_reshaped("mixer"),
    ),
}
