"""Small random models of many architectures, saved to disk, and the plain way to read what `map_sources` says."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from loaders.io.byte_ranges import ByteRanges
from loaders.io.sources import map_sources
from loaders.modules.layout import Layout
from loaders.modules.skeleton import Skeleton, build_skeleton, make_parameters
from loaders.safetensors_files.headers import read_checkpoint

DENSE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS: dict[str, Any] = DENSE | {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "decoder_sparse_step": 1, "shared_expert_intermediate_size": 32,
}  # fmt: skip
LATENT: dict[str, Any] = DENSE | {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8,
}  # fmt: skip
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip

SMALL: dict[str, dict[str, Any]] = {
    "llama": DENSE | {"rope_parameters": LLAMA3_ROPE},
    "qwen2": DENSE | {"tie_word_embeddings": True},
    "qwen3": DENSE,
    "mistral": DENSE | {"sliding_window": 8},
    "gemma2": DENSE,
    "gemma3_text": DENSE,
    "phi3": DENSE,
    "olmo2": DENSE,
    "glm4": DENSE,
    "cohere2": DENSE,
    "granite": DENSE,
    "smollm3": DENSE,
    "starcoder2": DENSE,
    "gpt_neox": DENSE | {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
    "qwen2_moe": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek_v3": LATENT,
    "qwen3_next": EXPERTS | {"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                             "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    "mamba2": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96, "state_size": 8, "num_heads": 8,
               "head_dim": 16, "n_groups": 1},
}  # fmt: skip

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def save_small_model(model_type: str, directory: Path, dtype: torch.dtype = torch.float32, **save: Any) -> None:
    """Save a random model in which no two tensors are equal: what initialises to a constant gets noise on top."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**SMALL[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for tensor in model.state_dict().values():
        tensor += 0.05 * torch.randn_like(tensor)
    model.save_pretrained(directory, **save)


def reference(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """What transformers loads; its weights are copied since those it maps from a file are not aligned."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def read_source(ranges: ByteRanges, layout: Layout) -> tuple[nn.Parameter, ...]:
    """Read one run after the other into a fresh buffer."""
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for run in ranges:
        with run.file.open("rb") as file:
            file.seek(run.file_offset)
            stored = torch.frombuffer(bytearray(file.read(run.nbytes)), dtype=DTYPES[run.stored_dtype])
        values = stored.to(run.buffer_dtype).view(torch.uint8)
        buffer[run.buffer_offset : run.buffer_offset + len(values)] = values
    return make_parameters(layout, buffer)


def bound_skeleton(directory: Path, dtype: torch.dtype = torch.float32) -> Skeleton:
    """A skeleton with every layer read and bound."""
    skeleton = build_skeleton(directory, dtype, "cpu", attn_implementation="eager")
    sources, embeddings_and_head = map_sources(skeleton, read_checkpoint(directory))
    for layer, source in zip(
        (*skeleton.layers, skeleton.embeddings_and_head), (*sources, embeddings_and_head), strict=True
    ):
        layer.bind(read_source(source, layer.layout))
    return skeleton


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Of 24 fixed tokens, [1, 24, vocabulary]."""
    return model(torch.arange(3, 75, 3)[None]).logits
