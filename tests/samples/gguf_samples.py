"""Tiny models as GGUF files, written by the `gguf` package, each beside the same model with its weights decoded.

Names come from the package's own table; what else its converter does to tensors is done here value by value. Nothing is
shared with the code under test.
"""

import json
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from tests.samples.tiny_models import make_checkpoint

gguf = pytest.importorskip("gguf", reason="GGUF files are written with the gguf package: pip install gguf")

STACK = r"\.(experts|altup_projections|altup_unembed_projections|norms)\."
NUMBERED = re.compile(STACK + r"(\d+)\.")
Type = gguf.GGMLQuantizationType
PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")  # the package can also pack these
KINDS = (
    *PACKED,
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("IQ4_NL", "IQ4_XS"),
)
ARCHITECTURES = {"gemma3_text": "gemma3", "mixtral": "llama", "qwen3_moe": "qwen3moe"}  # where GGUF has another name
SCALES = {  # where they are, and how many bytes
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 4)),
    **{"Q2_K": (80, 4), "Q3_K": (108, 2), "Q6_K": (208, 2), "TQ1_0": (52, 2), "TQ2_0": (64, 2), "MXFP4": (0, 1)},
}
LEAST = {
    "Q4_1": -8.0,
    "Q5_1": -16.0,
    "Q2_K": 1.5,
    "Q4_K": 7.0,
    "Q5_K": 15.0,
}  # scales that balance values from 0


def random_blocks(kind: str, shape: tuple[int, ...], spread: float, seed: str = "") -> np.ndarray:
    """uint8 [..., bytes]: all bits random but for those of the scales, which make the values about `spread` wide."""
    random = np.random.default_rng([crc32(seed.encode()), Type[kind].value, *shape])
    per_block, nbytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    stored = random.integers(0, 256, (*shape[:-1], shape[-1] // per_block, nbytes), dtype=np.uint8)
    scale = random.uniform(0.5, 1.5, (*stored.shape[:-1], 1)).astype(np.float32)
    set_scales(kind, stored, scale)
    width = gguf.quants.dequantize(stored.reshape(*shape[:-1], -1), Type[kind]).std()
    set_scales(kind, stored, scale * spread / width)
    return stored.reshape(*shape[:-1], -1)


def set_scales(kind: str, stored: np.ndarray, scale: np.ndarray) -> None:
    """Give blocks [..., bytes] scales [..., 1], and minima that balance their values."""
    begin, length = SCALES.get(kind, (0, 2))
    half = scale.astype(np.float16)
    if kind == "MXFP4":  # a power of two
        stored[..., :1] = np.round(np.log2(scale)) + 127
    elif kind == "IQ1_M":  # four bits at the top of each of four words
        words = stored[..., 48:].copy().view(np.uint16)
        words &= 0x0FFF
        words |= (half.view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 15) << 12
        stored[..., 48:] = words.view(np.uint8)
    else:
        both = np.concatenate([half, half * np.float16(LEAST.get(kind, 0))], axis=-1)
        stored[..., begin : begin + length] = both[..., : length // 2].copy().view(np.uint8)


def with_experts_stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for all experts of a layer, or matrices of a list, under the name without their numbers."""
    found: dict[str, dict[int, Tensor]] = {}
    plain = {name: tensor for name, tensor in tensors.items() if not NUMBERED.search(name)}
    for name in tensors.keys() - plain.keys():
        found.setdefault(NUMBERED.sub(r".\1.", name), {})[int(NUMBERED.search(name)[2])] = tensors[name]
    return plain | {name: torch.stack([by[i] for i in range(len(by))]) for name, by in sorted(found.items())}


def as_stored(config: PretrainedConfig, name: str, tensor: Tensor) -> Tensor:
    """What the converter makes of a tensor: pairs of rows for Llama's queries and keys, Gemma's norms with 1 added."""
    if (config.model_type in ("llama", "mixtral") and ".q_proj." in name) or (
        config.model_type in ("llama", "mixtral") and ".k_proj." in name
    ):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    return tensor + 1 if "gemma" in config.model_type and name.endswith("norm.weight") else tensor


def as_used(config: PretrainedConfig, name: str, tensor: Tensor) -> Tensor:
    """The way back."""
    if config.model_type in ("llama", "mixtral") and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    return tensor - 1 if "gemma" in config.model_type and name.endswith("norm.weight") else tensor


def llama3_frequencies(config: PretrainedConfig) -> np.ndarray:
    """The factors that Llama 3's rotations are slowed by, computed as transformers computes the rotations."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    return (plain / slowed).numpy().astype(np.float32)


def write_gguf(
    source: Path,
    target: Path,
    kind_of: Callable[[str], str],
    sliding_window_pattern: int | list[bool] | None = None,
    tensors_per_file: int = 0,
) -> Path:
    """Write `source` (a tiny checkpoint of ours) as one GGUF file, matrices in the kinds that `kind_of` says of them.

    Or as several files of at most `tensors_per_file`, whose names are made from that of `target`.

    Beside it, under "decoded", the same model with those weights as they decode, in float32.
    """
    config, tensors = AutoConfig.from_pretrained(source), load_file(source / "model.safetensors")
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=tensors_per_file)
    write_metadata(writer, config)
    if sliding_window_pattern is not None:
        writer.add_sliding_window_pattern(sliding_window_pattern)
    if (source / "tokenizer.json").exists():
        write_tokenizer(writer, source)
    decoded = {}
    for name, tensor in with_experts_stacked(tensors).items():
        base, _, leaf = name.rpartition(".")
        stored = as_stored(config, name, tensor.float()).numpy()
        kind = "F32" if tensor.dim() == 1 or names.get_name(base).endswith("ffn_gate_inp") else kind_of(name)
        if kind in KINDS and kind not in PACKED:
            blocks = random_blocks(kind, stored.shape, float(stored.std()), name)
        else:
            blocks = gguf.quants.quantize(stored, Type[kind])
        writer.add_tensor(f"{names.get_name(base)}.{leaf}", blocks, raw_dtype=Type[kind])
        values = torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind]).copy())
        values = as_used(config, name, values.view(tensor.shape)).contiguous()
        if tensor.dim() < 3:
            decoded[name] = values
        for index, expert in enumerate(values if tensor.dim() == 3 else ()):
            decoded[name.replace(".experts.", f".experts.{index}.")] = expert.clone()
    if config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_frequencies(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    directory = target.parent / "decoded"
    directory.mkdir(exist_ok=True)
    save_file(decoded, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    return target


def write_metadata(writer: Any, config: PretrainedConfig) -> None:
    """As the package's converter names the values."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if experts := getattr(config, "num_local_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if config.model_type == "qwen3_moe":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for name in ("bos", "eos"):
        if (token := getattr(config, f"{name}_token_id")) is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    if config.model_type != "phi3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rotations = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rotations["rope_theta"])
    if rotations.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rotations["rope_type"]))
        writer.add_rope_scaling_factor(rotations["factor"])
    if rotations.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rotations["original_max_position_embeddings"])
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if "gemma" in config.model_type:
        writer.add_sliding_window(config.sliding_window)


def write_tokenizer(writer: Any, directory: Path) -> None:
    """A byte-level vocabulary that splits text as Llama 3 does."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def mixed(name: str) -> str:
    """As files of a medium size mix them."""
    if "embed_tokens" in name or "lm_head" in name or "v_proj" in name:
        return "Q6_K"
    return "Q5_K" if "down_proj" in name else "Q4_K"


FEW_BITS = {
    **{"embed_tokens": "Q4_K", "lm_head": "Q6_K", "q_proj": "IQ2_XXS", "k_proj": "IQ2_S", "v_proj": "Q3_K"},
    **{"o_proj": "IQ3_S", "gate_proj": "Q2_K", "up_proj": "Q2_K", "down_proj": "Q3_K"},
}
FEWER_BITS = {
    **{"embed_tokens": "Q2_K", "lm_head": "IQ4_XS", "q_proj": "IQ1_M", "k_proj": "IQ2_XS", "v_proj": "IQ4_XS"},
    **{"o_proj": "IQ3_XXS", "gate_proj": "TQ1_0", "up_proj": "TQ2_0", "down_proj": "IQ1_S"},
}


def by_part(kinds: dict[str, str]) -> Callable[[str], str]:
    return lambda name: kinds[name.split(".")[-2]]


WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "initializer_range": 0.08}


def _rotations(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **values}}


LLAMA3 = _rotations(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
PLAIN = _rotations(rope_type="default")
GEMMA3 = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}

# A model: its architecture, changes to the tiny one, and the kind of each matrix.
CASES: dict[str, tuple[str, dict[str, Any], Callable[[str], str]]] = {
    **{kind: ("llama", PLAIN, lambda name, kind=kind: kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")},
    "llama 3, mixed K": ("llama", {**WIDE, **LLAMA3, "num_attention_heads": 4}, mixed),
    "few bits": ("llama", {**WIDE, **PLAIN, "num_attention_heads": 4}, by_part(FEW_BITS)),
    "fewer bits": ("qwen3", {**WIDE, "num_attention_heads": 4}, by_part(FEWER_BITS)),
    "llama with other rotations": ("llama", {}, lambda name: "Q8_0"),
    "F16": ("llama", PLAIN, lambda name: "F16"),
    "BF16, tied": ("llama", {**PLAIN, "tie_word_embeddings": True}, lambda name: "BF16"),
    "F32 qwen2": ("qwen2", PLAIN, lambda name: "F32"),
    "qwen2": (
        "qwen2",
        _rotations(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
        lambda name: "Q8_0",
    ),
    "qwen3": ("qwen3", {}, lambda name: "F16" if "v_proj" in name else "Q5_0"),
    "phi3": ("phi3", {"head_dim": 8}, lambda name: "Q4_0"),
    "mixtral": ("mixtral", PLAIN, lambda name: "Q5_1" if ".w2." in name else "Q4_0"),
    "mixtral in MXFP4": (
        "mixtral",
        PLAIN,
        lambda name: "IQ4_NL" if ".w2." in name else "MXFP4" if ".experts." in name else "BF16",
    ),
    "qwen3 with experts": (
        "qwen3_moe",
        {**PLAIN, "norm_topk_prob": True, "moe_intermediate_size": 32},
        lambda name: "Q8_0" if "down_proj" in name else "Q4_1",
    ),
    "gemma2": (
        "gemma2",
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "query_pre_attn_scalar": 8},
        lambda name: "Q8_0",
    ),
    "gemma3": ("gemma3_text", {**GEMMA3, "query_pre_attn_scalar": 8}, lambda name: "Q5_1"),
}
_DIRECTORY = tempfile.TemporaryDirectory(prefix="tiny-gguf-")


@cache
def gguf_model(case: str) -> Path:
    """The GGUF file of a case; beside it is "decoded"."""
    architecture, changes, kind_of = CASES[case]
    target = Path(_DIRECTORY.name) / case.replace(" ", "-").replace(",", "") / "model.gguf"
    target.parent.mkdir()
    return write_gguf(make_checkpoint(architecture, 2, False, changes), target, kind_of)
