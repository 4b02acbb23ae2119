"""Packed models of 60 to 70 MB, for measuring memory, written by what writes the tiny ones.

One matrix is packed and stands for all of its shape: the bytes make no difference to where they go.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from loaders.checkpoint.random_weights import write_random_checkpoint
from tests.samples.gguf_samples import PLAIN, Type, gguf, random_blocks, write_metadata
from tests.samples.quantized.packed_models import AWQ, BNB4, INTEGERS, compressed_config, fp8_config, gptq_config
from tests.samples.quantized.packed_samples import Packed, awq, bitsandbytes_int8, fp8, gptq, int8, mxfp4, nf4, words

LAYERS = 18  # of 4 bits a weight; half as many of 8
LLAMA = {
    "vocab_size": 256,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "pad_token_id": None,
    **PLAIN,
}
EXPERTS = {
    **LLAMA,
    "intermediate_size": 384,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
INT8 = compressed_config("int-quantized", type="int", num_bits=8, strategy="channel")
GROUPS = {"group_size": 128}
# As in `packed_models`: architecture, writer of one weight, and the config that says so; and how many layers.
CASES: dict[str, tuple[str, Callable[[Tensor], Packed], dict[str, Any], int]] = {
    "AWQ": ("llama", partial(awq, group=128), {**AWQ, **GROUPS}, LAYERS),
    "GPTQ in order of activations": (
        "llama",
        partial(gptq, group=128, order="activations"),
        gptq_config(**GROUPS, desc_act=True),
        LAYERS,
    ),
    "compressed-tensors int4": (
        "llama",
        partial(words, group=128),
        compressed_config("pack-quantized", **{**INTEGERS, **GROUPS}),
        LAYERS,
    ),
    "compressed-tensors int8": ("llama", int8, INT8, LAYERS // 2),
    "DeepSeek FP8": (
        "llama",
        partial(fp8, block=(128, 128), dtype=torch.float32, name="weight_scale_inv"),
        fp8_config(128, 128),
        LAYERS // 2,
    ),
    "MXFP4": ("gpt_oss", mxfp4, {"quant_method": "mxfp4"}, LAYERS),
    "bitsandbytes nf4, scales packed": ("llama", partial(nf4, nested=256), BNB4, LAYERS),
    "bitsandbytes int8": (
        "llama",
        bitsandbytes_int8,
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        LAYERS // 2,
    ),
}
GGUF_KINDS = ("Q4_K",)


def write_case(case: str, directory: Path, layers: int | None = None) -> Path:
    """The model of a case, with fewer layers where that is asked for; returns what is loaded."""
    directory.mkdir(parents=True)
    if case in GGUF_KINDS:
        return write_gguf(case, directory / "model.gguf", layers or LAYERS)
    architecture, _, quantization, most = CASES[case]
    config = config_of(architecture, layers or most)
    leaves = ("experts.gate_up_proj", "experts.down_proj") if architecture == "gpt_oss" else ("proj.weight",)
    tensors = {}
    for name, shape in shapes(config).items():
        if not name.endswith(leaves):
            tensors[name] = torch.full(shape, 0.5, dtype=torch.bfloat16)
            continue
        for leaf, part in packed(case, shape).items():
            joint = "" if leaf.startswith("_") else "."
            tensors[name.removesuffix(".weight") + joint + leaf] = part.clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = quantization
    config.save_pretrained(directory)
    return directory


@cache
def packed(case: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    tensors, _ = CASES[case][1](torch.randn(shape))
    return {leaf: tensor.contiguous() for leaf, tensor in tensors.items()}


def write_16_bits(directory: Path, layers: int) -> Path:
    write_random_checkpoint(config_of("llama", layers), directory)
    return directory


def config_of(architecture: str, layers: int) -> PretrainedConfig:
    values = EXPERTS if architecture == "gpt_oss" else LLAMA
    config = AutoConfig.for_model(architecture, **values, num_hidden_layers=layers)
    config.dtype = torch.bfloat16
    return config


def shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_gguf(kind: str, file: Path, layers: int) -> Path:
    config = config_of("llama", layers)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    writer = gguf.GGUFWriter(file, "llama")
    write_metadata(writer, config)
    blocks = cache(partial(random_blocks, kind, spread=0.02))
    for name, shape in shapes(config).items():
        base, _, leaf = name.rpartition(".")
        is_norm = len(shape) == 1
        content = np.ones(shape, np.float32) if is_norm else blocks(shape)
        writer.add_tensor(f"{names.get_name(base)}.{leaf}", content, raw_dtype=Type["F32" if is_norm else kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
