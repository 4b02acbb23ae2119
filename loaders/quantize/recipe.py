"""Decides which matrices of a checkpoint are quantized, how, and to what size. Reads headers only, no torch.

The result is what `compressed-tensors` calls "pack-quantized": symmetric integers of 4 or 8 bits, plus 2^(bits-1), in
int32 words, and one scale per group of inputs. The matrices of decoder layers are quantized. Embeddings, head, norms,
biases and the routers of experts are small and sensitive, and stay as they are.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loaders.checkpoint.read_spec import LAYER_NUMBER, NUMBER
from loaders.checkpoint.spec import DTYPE_NAMES
from loaders.errors import UnsupportedModelError
from loaders.formats.weights import WORD_BITS
from loaders.safetensors_files.headers import Checkpoint, StoredTensor
from loaders.safetensors_files.shards import SHARD_BYTES, described, lay_out

BITS = {"int8": 8, "int4": 4}
# Group sizes by bits: the first that divides the inputs is used; a whole row if none does. With 4 bits, groups of 32
# take 9 % more bytes than 128. For SmolLM2 135M, groups of 128 and 64 raised the perplexity 1.58 times, 32 raises it
# 1.38 times.
GROUP_SIZES = {4: (32,), 8: (128, 64, 32)}
PACKABLE = ("BF16", "F16", "F32")
# Routers, and a projection whose weight state-space models read directly, without calling its module.
KEPT = re.compile(r"\.(gate|router|shared_expert_gate|dt_proj)\.(.*\.)?weight$|embed")
EXPERT = re.compile(r"\.experts\.\d+\.")
TRANSPOSED_MODELS = {"gpt2", "openai-gpt"}  # their matrices are stored [inputs, outputs]
NUMERAL = re.compile(r"[0-9]{1,9}")
# Clipping ratios of a group's range: values beyond are rounded to its ends, and the others get finer steps. The ratio
# with the least squared error is taken; with 8 bits that is nearly always the whole range.
CLIPPINGS = {4: (1.0, 0.91, 0.83, 0.75), 8: (1.0,)}
LEAST_SHARE = 0.5  # the least share of the layers' bytes that must be quantizable matrices


@dataclass(frozen=True)
class Matrix:
    """A weight [outputs, inputs] to quantize, with one scale per `group_size` inputs."""

    stored: StoredTensor
    bits: int
    group_size: int

    @property
    def has_groups(self) -> bool:
        """Whether a row has several scales."""
        return self.group_size in GROUP_SIZES[self.bits]

    @property
    def module(self) -> str:
        """ "model.layers.0.mlp.up_proj" """
        return self.stored.name.removesuffix(".weight")

    @property
    def kind(self) -> str:
        """The same in every layer: "mlp.up_proj"."""
        return NUMBER.sub(".*.", LAYER_NUMBER.sub("", self.module, count=1))

    @property
    def results(self) -> tuple[StoredTensor, StoredTensor, StoredTensor]:
        """The tensors that replace it: words, scales, and the shape."""
        outputs, inputs = self.stored.shape
        return (
            described(f"{self.module}.weight_packed", "I32", (outputs, inputs * self.bits // WORD_BITS)),
            described(f"{self.module}.weight_scale", self.stored.dtype, (outputs, inputs // self.group_size)),
            described(f"{self.module}.weight_shape", "I64", (2,)),
        )


@dataclass(frozen=True)
class Quantization:
    """A checkpoint of which some tensors are quantized; everything else is copied.

    calibration: the mark of the text with which matrices are rounded; empty where each is rounded by itself.
    """

    source: Checkpoint
    bits: int
    matrices: tuple[Matrix, ...]
    kept: tuple[StoredTensor, ...]
    calibration: str = ""

    @classmethod
    def of(cls, source: Checkpoint, config: Mapping[str, Any], bits: int) -> Quantization:
        """Choose the matrices. Raises UnsupportedModelError if they are quantized already, or too few."""
        if config.get("quantization_config") or config.get("compression_config"):
            raise UnsupportedModelError(
                f"{source.directory}: its weights are packed already; to pack them again would only lose precision. "
                "Run it as it is, without --quantize."
            )
        if config.get("model_type") in TRANSPOSED_MODELS:
            raise UnsupportedModelError(
                f"{source.directory}: {config['model_type']} stores its matrices transposed, which no int{bits} "
                "checkpoint does. Run it as it is, without --quantize."
            )
        packable = {name: tensor for name, tensor in source.tensors.items() if _is_packable(tensor)}
        matrices = {
            tensor.name: Matrix(tensor, bits, size) for tensor, size in _with_group_sizes(packable.values(), bits)
        }
        kept = tuple(tensor for name, tensor in source.tensors.items() if name not in matrices)
        _check_share(source, matrices, kept)
        return cls(source, bits, tuple(matrices.values()), kept)

    @property
    def label(self) -> str:
        """ "int8, groups of 128, calibrated" """
        sizes = sorted({matrix.group_size for matrix in self.matrices if matrix.has_groups})
        groups = [f"groups of {' and '.join(map(str, reversed(sizes)))}"] if sizes else []
        rows = [] if all(matrix.has_groups for matrix in self.matrices) else ["whole rows"]
        return f"int{self.bits}, {' and '.join(groups + rows)}{', calibrated' if self.calibration else ''}"

    def shards(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> dict[Path, list[StoredTensor]]:
        """The files of the result with each tensor's offset; one layer after the other."""
        tensors = [*self.kept, *(tensor for matrix in self.matrices for tensor in matrix.results)]
        return lay_out(sorted(tensors, key=_order), directory, shard_bytes)

    def checkpoint(self, directory: Path) -> Checkpoint:
        """What `read_checkpoint` will find in `directory` once it is written there."""
        shards = self.shards(directory)
        return Checkpoint(directory, {tensor.name: tensor for shard in shards.values() for tensor in shard})

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors of the result."""
        packed = sum(tensor.nbytes for matrix in self.matrices for tensor in matrix.results)
        return packed + sum(tensor.nbytes for tensor in self.kept)

    def config(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the result, given that of the source."""
        largest = max(self.matrices, key=lambda matrix: matrix.stored.nbytes)
        dtype = DTYPE_NAMES[largest.stored.dtype]
        stated = [key for key in ("dtype", "torch_dtype") if key in source] or ["dtype"]
        config = {**source, **dict.fromkeys(stated, dtype)}
        if isinstance(text := source.get("text_config"), dict):
            config["text_config"] = {**text, **{key: dtype for key in ("dtype", "torch_dtype") if key in text}}
        return {**config, "quantization_config": self._quantization_config()}

    def _quantization_config(self) -> dict[str, Any]:
        by_size: dict[int | None, list[str]] = defaultdict(list)
        for matrix in self.matrices:
            by_size[matrix.group_size if matrix.has_groups else None].append(matrix.module)
        names = [name for names in by_size.values() for name in names]
        # the most common size holds for all modules that no other group names: names win over module types
        common = max(by_size, key=lambda size: len(by_size[size]))
        groups = [
            {
                "targets": ["Linear"] if size == common else _patterns(modules, set(names) - set(modules)),
                "weights": _weight_arguments(self.bits, size),
                "input_activations": None,
                "output_activations": None,
            }
            for size, modules in by_size.items()
        ]
        kept = [t.name.removesuffix(".weight") for t in self.kept if t.name.endswith(".weight") and len(t.shape) == 2]
        inner = [name for name in kept if LAYER_NUMBER.match(f"{name}.")]
        embeddings_and_head = dict.fromkeys(["lm_head", *(name for name in kept if name not in inner)])
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
            "ignore": [*embeddings_and_head, *_patterns(inner, set(names))],
            "kv_cache_scheme": None,
        }


def _is_packable(tensor: StoredTensor) -> bool:
    """Whether a tensor is a matrix of a decoder layer that fills whole words, with a multiple of 8 inputs."""
    is_weight = len(tensor.shape) == 2 and tensor.name.endswith(".weight") and tensor.dtype in PACKABLE
    is_inside = LAYER_NUMBER.match(tensor.name) and not KEPT.search(tensor.name)
    return bool(is_weight and is_inside and tensor.nbytes and tensor.shape[1] % 8 == 0)


def _with_group_sizes(tensors: Iterable[StoredTensor], bits: int) -> list[tuple[StoredTensor, int]]:
    """How many inputs share a scale. All experts use one size: other software runs them with one kernel."""
    tensors = list(tensors)
    common = math.gcd(*(tensor.shape[1] for tensor in tensors if EXPERT.search(tensor.name)))
    sizes = []
    for tensor in tensors:
        divided = common if EXPERT.search(tensor.name) else tensor.shape[1]
        sizes.append((tensor, next((size for size in GROUP_SIZES[bits] if divided % size == 0), tensor.shape[1])))
    return sizes


def _check_share(source: Checkpoint, matrices: Mapping[str, Matrix], kept: Iterable[StoredTensor]) -> None:
    packed = sum(matrix.stored.nbytes for matrix in matrices.values())
    rest = [tensor for tensor in kept if LAYER_NUMBER.match(tensor.name)]
    if packed < LEAST_SHARE * (packed + sum(tensor.nbytes for tensor in rest)) or not matrices:
        largest = max(rest or source.tensors.values(), key=lambda tensor: tensor.nbytes)
        raise UnsupportedModelError(
            f"{source.directory}: most of its weights are not stored as matrices of 16 or 32 bits, one for each "
            f"module, but like {largest.name} {largest.dtype} {list(largest.shape)}, which cannot be packed. "
            "Run it as it is, without --quantize."
        )


def _weight_arguments(bits: int, group_size: int | None) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size,
        "dynamic": False,
    }


def _patterns(modules: Iterable[str], others: Iterable[str]) -> list[str]:
    """Targets that match all of `modules` and none of `others`.

    They match the last part of a name where it is unique: other software may name the parts before it differently.
    """
    elsewhere = {name.rpartition(".")[2] for name in others}
    patterns: dict[str, None] = {}
    for module in modules:
        leaf = module.rpartition(".")[2]
        patterns[module if leaf in elsewhere else f"re:.*\\.{re.escape(leaf)}$"] = None
    return list(patterns)


def _order(tensor: StoredTensor) -> list[tuple[int, int, str]]:
    """Sort numbers in a name by value: layer 10 comes after layer 9."""
    return [(0, int(part), "") if NUMERAL.fullmatch(part) else (1, 0, part) for part in tensor.name.split(".")]
