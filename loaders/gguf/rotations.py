"""Translates a GGUF file's rotary frequencies to transformers' `rope_parameters`."""

from __future__ import annotations

import math
import struct
from typing import Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.gguf.header import GgufFile
from loaders.gguf.metadata import Metadata

# RoPE settings of Llama 3.1 and later, besides the factor; GGUF files only hold the resulting factors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MAX_FACTORS = 1 << 16
BASES = (10.0, 1e12)  # RoPE base; published models have 1,000 to 4.6e10
SLOWER = (1e-3, 1e6)  # frequency divisors
SCALING = {
    "type",
    "factor",
    "original_context_length",
    "finetuned",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_attn_factor",
}
OF_FAMILIES = {  # read by the families themselves
    "phi3": {"attn_factor"},
    "deepseek2": {"yarn_log_multiplier"},
    "mistral3": {"yarn_log_multiplier"},
}


def rotations(metadata: Metadata, partial: bool = False) -> dict[str, Any]:
    """The `rope_parameters` of a model with the same RoPE in all layers.

    Raises UnsupportedModelError for unknown scaling, and for partly rotated heads unless `partial`.
    """
    parameters = linear_or_yarn(metadata, 10_000.0)
    width = metadata.integer("rope.dimension_count", metadata.head_dim)
    if partial:
        parameters["partial_rotary_factor"] = width / metadata.head_dim
    elif width != metadata.head_dim:
        raise UnsupportedModelError(
            f"{metadata.gguf.file}: {width} of the {metadata.head_dim} values of a head are rotated. Of "
            f"{metadata.prefix} models only those can be run in which all are."
        )
    if "rope_freqs.weight" in metadata.gguf.tensors:
        parameters |= _by_factors(metadata, factors(metadata.gguf, "rope_freqs.weight"), parameters["rope_theta"])
    return parameters


def linear_or_yarn(metadata: Metadata, default_theta: float) -> dict[str, Any]:
    """The scaling in the metadata alone: none, or linear by a factor."""
    _refuse_unknown_scaling(metadata)
    theta = metadata.real("rope.freq_base", default_theta, *BASES)
    kind = metadata.optional("rope.scaling.type") or "none"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"{metadata.gguf.file}: {metadata.prefix}.rope.scaling.type is {kind!r:.40}; linear and yarn can be run."
        )
    if kind in ("none", "longrope"):  # longrope's factors are tensors
        return {"rope_type": "default", "rope_theta": theta}
    parameters = {"rope_type": kind, "rope_theta": theta, "factor": metadata.real("rope.scaling.factor", None, *SLOWER)}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
        parameters |= {
            name: metadata.real(f"rope.scaling.yarn_{name}")
            for name in ("beta_fast", "beta_slow")
            if metadata.optional(f"rope.scaling.yarn_{name}") is not None
        }
        if metadata.optional("rope.scaling.yarn_attn_factor") is not None:
            parameters["attention_factor"] = metadata.real("rope.scaling.yarn_attn_factor", None, *SLOWER)
    return parameters


def _refuse_unknown_scaling(metadata: Metadata) -> None:
    """Reject settings that we do not read: ignoring them would change the results."""
    start = f"{metadata.prefix}.rope.scaling."
    names = {key.removeprefix(start) for key in metadata.gguf.metadata if key.startswith(start)}
    if unknown := sorted(names - SCALING - OF_FAMILIES.get(metadata.prefix, set())):
        raise UnsupportedModelError(
            f"{metadata.gguf.file}: {start}{unknown[0][:60]} is not known of {metadata.prefix} models. "
            "Use the original checkpoint in safetensors instead."
        )


def factors(gguf: GgufFile, name: str) -> list[float]:
    """The divisor of each rotary frequency. Raises ModelFilesError."""
    tensor = gguf.tensors.get(name)
    if tensor is None or tensor.kind != "F32" or len(tensor.values) != 1 or tensor.values[0] > MAX_FACTORS:
        raise ModelFilesError(f"{gguf.file}: {name} must be there, as a row of F32.")
    found = list(struct.unpack(f"<{tensor.values[0]}f", gguf.bytes_of(tensor)))
    if not all(math.isfinite(factor) and factor > 0 for factor in found):
        raise ModelFilesError(f"{gguf.file}: {name} holds values that are not positive numbers.")
    return found


def _by_factors(metadata: Metadata, found: list[float], theta: float) -> dict[str, Any]:
    """Llama 3's scaling if it gives exactly these factors, as in the original model; otherwise the factors.

    Longrope takes any factors; here its short and long factors are the same.
    """
    if len(found) != metadata.head_dim // 2:
        raise ModelFilesError(
            f"{metadata.gguf.file}: rope_freqs.weight has {len(found)} values, but heads of "
            f"{metadata.head_dim} need half as many."
        )
    if all(factor == 1 for factor in found):
        return {}
    known = {"rope_type": "llama3", "factor": float(round(max(found), 3)), **LLAMA3}
    made = llama3_factors(theta, metadata.head_dim, known)
    if all(math.isclose(factor, other, rel_tol=1e-5) for factor, other in zip(found, made)):
        return known
    return {
        "rope_type": "longrope",
        "short_factor": found,
        "long_factor": found,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": metadata.integer("context_length"),
    }


def llama3_factors(theta: float, head_dim: int, parameters: dict[str, Any]) -> list[float]:
    """Low frequencies are divided by the whole factor, high ones by 1, those between by a blend of both."""
    factor, context = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    made = []
    for index in range(0, head_dim, 2):
        turns = context / (2 * math.pi * theta ** (index / head_dim))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        made.append(1 / ((1 - share) / factor + share))
    return made
