"""compressed-tensors: packed integers, int8, FP8, NVFP4, MXFP4 and MXFP8, with scales per group, row, tensor or block.

The config describes groups of modules. A weight's group follows from how it is stored, and its stored tensors must
agree with one of the groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from loaders.errors import ModelFilesError
from loaders.formats.fp4 import EXPONENTS, MXFP4_GROUP, fp4_matrix
from loaders.formats.schemes import Scaled, Words
from loaders.formats.weights import (
    SCALE_DTYPES,
    WORD_BITS,
    PackedWeight,
    Settings,
    Tensors,
    base_names,
    groups,
    matrix,
    take,
)
from loaders.safetensors_files.headers import StoredTensor, read_tensor_bytes

FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense",
)  # fmt: skip
STRATEGIES = ("tensor", "channel", "group", "block")
FP4_STRATEGIES = ("tensor_group", "group")  # NVFP4 has a global scale, too; MXFP4 has not
SCALARS: list[tuple[int, ...]] = [(1,), (1, 1), ()]
ALL_SCALE_DTYPES = (*SCALE_DTYPES, "F8_E4M3", *EXPONENTS)
KINDS = {"F8_E4M3": "float", "I8": "int"}
ONE_A_BYTE = ("int-quantized", "naive-quantized")  # integers of any number of bits; others are packed into words


@dataclass(frozen=True)
class WeightArguments:
    """One config group's settings for weights."""

    kind: str  # "int" or "float"
    bits: int
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None
    symmetric: bool

    @classmethod
    def read(cls, settings: Settings, packing: str) -> WeightArguments:
        kind = settings.choice("type", ("int", "float"), "int")
        bits = settings.choice("num_bits", range(1, 9) if kind == "int" and packing in ONE_A_BYTE else (4, 8), 8)
        is_fp4 = (kind, bits) == ("float", 4)
        strategy = _strategy(settings, FP4_STRATEGIES if is_fp4 else STRATEGIES)
        return cls(
            kind,
            bits,
            strategy,
            settings.group_size() if strategy in ("group", "tensor_group") else None,
            settings.block("block_structure") if strategy == "block" else None,
            settings.choice("symmetric", (True,) if is_fp4 else (True, False), True),
        )

    @property
    def label(self) -> str:
        if self.kind == "int":
            return f"int{self.bits}"
        if self.bits == 4:
            return "NVFP4" if self.strategy == "tensor_group" else "MXFP4"
        return "MXFP8" if (self.strategy, self.group_size) == ("group", MXFP4_GROUP) else "FP8"


@dataclass(frozen=True)
class CompressedFormat:
    arguments: tuple[WeightArguments, ...]

    @property
    def label(self) -> str:
        names = sorted({arguments.label for arguments in self.arguments})
        return f"compressed-tensors {' and '.join(names)}"

    @classmethod
    def read(cls, settings: Settings) -> CompressedFormat:
        packing = settings.choice("format", FORMATS, "dense")
        if settings.part("sparsity_config").values.get("format", "dense") != "dense":
            raise settings.unsupported("sparsity_config has weights left out, which cannot be run")
        if settings.part("transform_config").values.get("config_groups"):
            raise settings.unsupported("transform_config has activations rotated, which cannot be run")
        config_groups = settings.part("config_groups")
        found: dict[WeightArguments, None] = {}
        for name in config_groups.values:
            group = config_groups.part(name)
            own = group.choice("format", FORMATS, packing)
            if group.values.get("weights") is not None:
                found[WeightArguments.read(group.part("weights"), own)] = None
        if not found:
            raise settings.unsupported("config_groups describe no weights")
        return cls(tuple(found))

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, ".weight_scale"):
            packed = tensors.get(f"{base}.weight_packed")
            if packed is not None and packed.dtype == "U8":
                yield self._fp4(tensors, base, packed)
            elif packed is not None:
                yield self._words(tensors, base)
            else:
                yield self._scaled(tensors, base)
        for base in base_names(tensors, ".weight_packed"):
            take(tensors, f"{base}.weight_scale", ALL_SCALE_DTYPES, because=f" for {base}.weight_packed")

    def _fp4(self, tensors: Tensors, base: str, packed: StoredTensor) -> PackedWeight:
        """Two floats a byte: NVFP4 where there is a global scale, else MXFP4."""
        overall = "weight_global_scale" if f"{base}.weight_global_scale" in tensors else None
        strategy = "tensor_group" if overall else "group"
        for arguments in self.arguments:
            if (arguments.kind, arguments.bits, arguments.strategy) == ("float", 4, strategy) and arguments.group_size:
                return fp4_matrix(tensors, base, packed, arguments.group_size, overall)
        raise self._contradicted(packed, take(tensors, f"{base}.weight_scale", ALL_SCALE_DTYPES))

    def _words(self, tensors: Tensors, base: str) -> PackedWeight:
        """A weight of packed integers. Its bits are those of the config group that fits the shape of its scale."""
        packed = take(tensors, f"{base}.weight_packed", ["I32"])
        scale = take(tensors, f"{base}.weight_scale", SCALE_DTYPES)
        outputs, words = matrix(packed)
        asymmetric = f"{base}.weight_zero_point" in tensors
        stated = self._stated_inputs(tensors, base)
        for arguments in self._candidates("int", packed, asymmetric):
            inputs = words * WORD_BITS // arguments.bits
            if stated not in (None, inputs):
                continue
            if arguments.strategy == "group" and arguments.group_size and inputs % arguments.group_size:
                continue
            count = groups(inputs, arguments.group_size, packed)
            if scale.shape not in (SCALARS if arguments.strategy == "tensor" else [(outputs, count)]):
                continue
            operands = {"weight_packed": packed, "weight_scale": scale}
            per_word = WORD_BITS // arguments.bits
            if asymmetric:
                shape = (-(-outputs // per_word), count)
                operands["weight_zero_point"] = take(tensors, f"{base}.weight_zero_point", ["I32"], shape)
            if f"{base}.weight_g_idx" in tensors:
                operands["weight_g_idx"] = take(tensors, f"{base}.weight_g_idx", ["I32"], (inputs,))
            ordered = "weight_g_idx" not in operands
            scheme = Words(arguments.bits, inputs // count, ordered)
            return PackedWeight(f"{base}.weight", (outputs, inputs), scheme, operands)
        raise self._contradicted(packed, scale)

    def _stated_inputs(self, tensors: Tensors, base: str) -> int | None:
        """The number of inputs in `weight_shape`, read only if the config leaves the bits open."""
        if len({arguments.bits for arguments in self.arguments}) == 1 or f"{base}.weight_shape" not in tensors:
            return None
        shape = take(tensors, f"{base}.weight_shape", ["I64", "I32"], (2,))
        content = read_tensor_bytes(shape)
        return int.from_bytes(content[len(content) // 2 :], "little")

    def _scaled(self, tensors: Tensors, base: str) -> PackedWeight:
        weight = take(tensors, f"{base}.weight", KINDS, because=f" for {base}.weight_scale")
        dtypes = (*SCALE_DTYPES, *EXPONENTS) if weight.dtype == "F8_E4M3" else SCALE_DTYPES
        scale = take(tensors, f"{base}.weight_scale", dtypes)
        outputs, inputs = matrix(weight)
        asymmetric = f"{base}.weight_zero_point" in tensors
        for arguments in self._candidates(KINDS[weight.dtype], weight, asymmetric):
            rows, columns = _grid(arguments, outputs, inputs)
            shape = (-(-outputs // rows), -(-inputs // columns))
            if scale.shape != shape and not (shape == (1, 1) and scale.shape in SCALARS):
                continue
            operands = {"weight": weight, "weight_scale": scale}
            if asymmetric:
                operands["weight_zero_point"] = take(tensors, f"{base}.weight_zero_point", ["I8"], scale.shape)
            return PackedWeight(f"{base}.weight", (outputs, inputs), Scaled(rows, columns), operands)
        raise self._contradicted(weight, scale)

    def _candidates(self, kind: str, weight: StoredTensor, asymmetric: bool) -> list[WeightArguments]:
        """The config groups that may describe a weight. Zero points that are all zero may be stored or left out."""
        bits = {"F8_E4M3": (8,), "I8": range(1, 9)}.get(weight.dtype, (4, 8))  # two floats a byte are told apart before
        return [
            arguments
            for arguments in self.arguments
            if arguments.kind == kind and arguments.bits in bits and (asymmetric or arguments.symmetric)
        ]

    def _contradicted(self, weight: StoredTensor, scale: StoredTensor) -> ModelFilesError:
        return ModelFilesError(
            f"{weight.file}: {weight.name} {weight.dtype} {list(weight.shape)} with a scale of shape "
            f"{list(scale.shape)} is nothing that the config_groups of quantization_config describe "
            f"({', '.join(map(str, self.arguments))}). Config and weights are not of the same model."
        )


def _grid(arguments: WeightArguments, outputs: int, inputs: int) -> tuple[int, int]:
    """The rows and columns that share a scale."""
    return {
        "tensor": (outputs, inputs),
        "channel": (1, inputs),
        "group": (1, arguments.group_size or inputs),
        "block": arguments.block or (outputs, inputs),
    }[arguments.strategy]


def _strategy(settings: Settings, choices: Collection[str]) -> str:
    """The library's default: "group" if there is a group size, else "tensor"."""
    grouped = settings.group_size() is not None
    stated = settings.values.get("group_size") is not None
    default = "group" if grouped else "channel" if stated else "tensor"
    strategy: str = settings.choice("strategy", choices, default)
    if strategy in ("group", "tensor_group") and not grouped:
        raise settings.unsupported(f'strategy is "{strategy}", but there is no group_size')
    return strategy
