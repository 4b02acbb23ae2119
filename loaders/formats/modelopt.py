"""NVIDIA ModelOpt: NVFP4, FP8 and MXFP8 in one checkpoint, each weight as its tensors say.

The config names the kinds that occur, the modules left in 16 bits, as names or globs, and in mixed checkpoints the kind
of each module. How a weight is stored says the same, and is what is read here; it must be a kind that is named.
Activations and the cache are not quantized here, so their scales (input_scale, k_scale, v_scale) are not read. Values
are multiplied by float32 scales in float32, and rounded once, to the dtype that is computed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.formats.fp4 import EXPONENTS, MXFP4_GROUP, NVFP4_GROUP, fp4_experts, fp4_matrix
from loaders.formats.schemes import Scaled
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, groups, matrix, take
from loaders.safetensors_files.headers import StoredTensor

BLOCK = 128  # rows and columns that share a scale in FP8_PB_WO
# By quant_algo. W4A8 and the like also say how activations are rounded.
KINDS = {
    "FP8": "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN": "FP8",
    "FP8_PB_WO": "FP8",
    "NVFP4": "NVFP4",
    "NVFP4_AWQ": "NVFP4",
    "W4A16_NVFP4": "NVFP4",
    "W4A8_NVFP4_FP8": "NVFP4",
    "MXFP8": "MXFP8",
    "W4A8_MXFP4_FP8": "MXFP4",
}
MIXED = "MIXED_PRECISION"


@dataclass(frozen=True)
class ModelOptFormat:
    """`kinds` are those that the config names."""

    kinds: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"ModelOpt {' and '.join(self.kinds)}"

    @classmethod
    def read(cls, settings: Settings) -> ModelOptFormat:
        if "quantization" in settings.values:  # as in hf_quant_config.json
            settings = settings.part("quantization")
        if settings.choice("quant_algo", (*KINDS, MIXED)) != MIXED:
            algorithms = [settings]
        else:
            layers = settings.part("quantized_layers")
            algorithms = [layers.part(name) for name in layers.values]
        found = {KINDS[each.choice("quant_algo", KINDS)] for each in algorithms}
        if not found:
            raise settings.unsupported("quant_algo is MIXED_PRECISION, but quantized_layers names no layer")
        for each in algorithms:
            if "NVFP4" in str(each.values["quant_algo"]):
                each.choice("group_size", (NVFP4_GROUP,), NVFP4_GROUP)
        return cls(tuple(sorted(found)))

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, ".pre_quant_scale"):
            raise UnsupportedModelError(
                f"{tensors[f'{base}.pre_quant_scale'].file}: {base}.pre_quant_scale scales the inputs of a module, "
                "which cannot be run. Look for a checkpoint without it: NVFP4 or FP8."
            )
        for base in base_names(tensors, ".weight_scale"):
            weight = take(tensors, f"{base}.weight", ["U8", "F8_E4M3"], because=f" for {base}.weight_scale")
            yield self._fp4(tensors, base, weight) if weight.dtype == "U8" else self._fp8(tensors, base, weight)
        for name in base_names(tensors, "_weight_scale"):
            if name.rpartition(".")[2]:
                self._check("NVFP4", tensors[f"{name}_weight_scale"])
                packed = take(tensors, name, ["U8"], because=f" for {name}_weight_scale")
                yield fp4_experts(tensors, name, packed)

    def _fp4(self, tensors: Tensors, base: str, weight: StoredTensor) -> PackedWeight:
        if tensors[f"{base}.weight_scale"].dtype in EXPONENTS:
            self._check("MXFP4", weight)
            return fp4_matrix(tensors, base, weight, MXFP4_GROUP, None, in_float32=True)
        self._check("NVFP4", weight)
        return fp4_matrix(tensors, base, weight, NVFP4_GROUP, "weight_scale_2", in_float32=True)

    def _fp8(self, tensors: Tensors, base: str, weight: StoredTensor) -> PackedWeight:
        outputs, inputs = matrix(weight)
        scale = tensors[f"{base}.weight_scale"]
        if scale.dtype in EXPONENTS:
            self._check("MXFP8", weight)
            shape = (outputs, groups(inputs, MXFP4_GROUP, weight))
            take(tensors, scale.name, EXPONENTS, shape, because=f" for {weight.name}")
            rows, columns = 1, MXFP4_GROUP
        else:
            self._check("FP8", weight)
            down, along = -(-outputs // BLOCK), -(-inputs // BLOCK)
            sizes: dict[tuple[int, ...], tuple[int, int]] = {
                (down, 1, along, 1): (BLOCK, BLOCK),
                (down, along): (BLOCK, BLOCK),
                (outputs, 1): (1, inputs),
                (outputs,): (1, inputs),
                (1,): (outputs, inputs),
                (): (outputs, inputs),
            }
            take(tensors, scale.name, ["F32", "BF16", "F16"], *sizes, because=f" for {weight.name}")
            rows, columns = sizes[scale.shape]
        scheme = Scaled(rows, columns, in_float32=True)
        return PackedWeight(f"{base}.weight", (outputs, inputs), scheme, {"weight": weight, "weight_scale": scale})

    def _check(self, kind: str, stored: StoredTensor) -> None:
        if kind not in self.kinds:
            raise ModelFilesError(
                f"{stored.file}: {stored.name} is stored as {kind}, but quantization_config names "
                f"{' and '.join(self.kinds)} alone. Config and weights are not of the same model."
            )
