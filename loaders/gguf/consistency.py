"""Checks that a GGUF file's metadata agree with its tensors, as ggml does.

A model with a wrong count or width would run and give wrong results: fewer layers, other head boundaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from loaders.errors import ModelFilesError
from loaders.gguf.families.architecture import GgufArchitecture
from loaders.gguf.header import STRING, GgufArray, GgufFile
from loaders.gguf.metadata import Metadata

_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.weight")
_TOKENIZER = "tokenizer.ggml."
_BEGIN_AND_END = ("bos", "eos", "eot", "unknown", "padding")
_FLOAT32, _WHOLE = 6, (4, 5)  # types of items


def check_consistent(gguf: GgufFile, metadata: Metadata, family: GgufArchitecture) -> None:
    """Check the metadata against the tensors and each other. Raises ModelFilesError, which quotes both sides."""
    numbers = {int(match[1]) for name in gguf.tensors if (match := re.match(r"blk\.(\d{1,6})\.", name))}
    layers, stated = max(numbers, default=-1) + 1, metadata.integer("block_count")
    if stated != layers or len(numbers) != layers:
        raise _contradiction(metadata, f"block_count is {stated}", f"its tensors are of {len(numbers)} layers")
    for name, outputs, inputs in _matrices(metadata, family):
        tensor = gguf.tensors.get(name)
        if tensor is not None and tensor.values[-2:] != (outputs, inputs):
            raise _contradiction(metadata, f"{name} has to be {[outputs, inputs]}", f"it is {list(tensor.values)}")
    _check_vocabulary(gguf, metadata)


def _matrices(metadata: Metadata, family: GgufArchitecture) -> Iterator[tuple[str, int, int]]:
    """Name, outputs and inputs of the matrices whose sizes follow from the metadata."""
    width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    shared, size = max(metadata.kv_heads), metadata.head_dim
    if family.plain_attention and (other := metadata.integer("attention.value_length", size)) != size:
        raise _contradiction(metadata, f"attention.key_length is {size}", f"attention.value_length is {other}")
    if heads % shared:
        raise _contradiction(metadata, f"attention.head_count is {heads}", f"{shared} heads of keys do not divide it")
    inner = metadata.inner
    inner_of_expert = metadata.integer("expert_feed_forward_length", inner)
    width_of_experts = metadata.integer("moe_latent_size", width)
    fused = family.layer.get("ffn_up", "").endswith("gate_up_proj")
    attention = {
        "attn_q": (heads * size, width),
        "attn_k": (shared * size, width),
        "attn_v": (shared * size, width),
        "attn_qkv": ((heads + 2 * shared) * size, width),
        "attn_output": (width, heads * size),
    }
    mlp = {
        "ffn_gate": (inner, width),
        "ffn_up": (2 * inner if fused else inner, width),
        "ffn_down": (width, inner),
    }
    shapes = {
        **(attention if family.plain_attention else {}),
        **(mlp if len({*metadata.inners}) == 1 else {}),
        "ffn_gate_exps": (inner_of_expert, width_of_experts),
        "ffn_up_exps": (inner_of_expert, width_of_experts),
        "ffn_down_exps": (width_of_experts, inner_of_expert),
    }
    for name in metadata.gguf.tensors:
        if (match := _LAYER.fullmatch(name)) and match[2] in shapes:
            yield (name, *shapes[match[2]])
    if (embedding := metadata.gguf.tensors.get("token_embd.weight")) is not None:
        rows = metadata.integer("vocab_size", embedding.values[0])
        yield "token_embd.weight", rows, width
        yield "output.weight", rows, width


def _check_vocabulary(gguf: GgufFile, metadata: Metadata) -> None:
    """At most as many tokens as embedding rows; as many scores and types as tokens; special tokens within them."""
    tokens, rows = gguf.metadata.get(f"{_TOKENIZER}tokens"), gguf.tensors["token_embd.weight"].values[0]
    if tokens is not None and (not isinstance(tokens, GgufArray) or tokens.item_type != STRING or tokens.count > rows):
        raise _contradiction(metadata, f"the embedding has {rows} rows", "the list of tokens is longer, or is none")
    for name, types in (("scores", (_FLOAT32,)), ("token_type", _WHOLE)):
        values = gguf.metadata.get(f"{_TOKENIZER}{name}")
        if values is None or tokens is None:
            continue
        if not isinstance(values, GgufArray) or values.item_type not in types or values.count != tokens.count:
            raise _contradiction(metadata, f"there are {tokens.count} tokens", f"{name} is no list of as many numbers")
    for name in _BEGIN_AND_END:
        index = gguf.metadata.get(f"{_TOKENIZER}{name}_token_id")
        if index is not None and (type(index) is not int or not 0 <= index < rows):
            raise _contradiction(metadata, f"{name}_token_id is {index}", f"the embedding has {rows} rows")


def _contradiction(metadata: Metadata, one: str, other: str) -> ModelFilesError:
    return ModelFilesError(
        f"{metadata.gguf.file}: {one}, but {other}. The file contradicts itself: it is damaged; download it again."
    )
