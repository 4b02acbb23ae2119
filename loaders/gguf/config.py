"""Translates a GGUF file's metadata to transformers' config of the same model.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the metadata do not
say (such as how Gemma scales its queries) follows the constants in llama.cpp.
"""

from __future__ import annotations

from collections import Counter

from loaders.errors import ModelFilesError
from loaders.gguf.consistency import check_consistent
from loaders.gguf.families.architecture import Config
from loaders.gguf.families.known import family_of
from loaders.gguf.header import GgufFile
from loaders.gguf.metadata import Metadata
from loaders.gguf.tensors import model_tensors
from loaders.gguf.vocabulary import MESSAGE_END, TOKENS, has_gguf_vocabulary, replies_in_messages

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def gguf_config(gguf: GgufFile) -> Config:
    """What the model's config.json would say. Raises ModelFilesError and UnsupportedModelError."""
    family = family_of(gguf)
    metadata = Metadata(gguf, gguf.get("general.architecture", str))
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.values) != 2:
        raise ModelFilesError(f"{gguf.file}: it holds no token_embd.weight. Is this a language model's file?")
    check_consistent(gguf, metadata, family)
    heads = metadata.integer("attention.head_count")
    config: Config = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": embedding.values[0],
        "hidden_size": metadata.integer("embedding_length"),
        "intermediate_size": metadata.inner,
        "num_hidden_layers": metadata.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(metadata.kv_heads),
        "head_dim": metadata.head_dim,
        "max_position_embeddings": metadata.integer("context_length"),
        **_epsilon(metadata, family.layer_norm),
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


def _epsilon(metadata: Metadata, layer_norm: str) -> Config:
    """What is added to a variance. layer_norm: its name where norms subtract the mean."""
    key = "attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon"
    return {layer_norm or "rms_norm_eps": metadata.real(key, least=1e-12, most=1e-2)}


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
