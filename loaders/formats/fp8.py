"""FP8 (e4m3) with a scale per block (DeepSeek, Qwen), per row (fbgemm), or per tensor; experts may be 4-bit floats.

Publishers name scales differently: weight_scale_inv, weight_scale, scale (DeepSeek-V4), qscale_weight (Mistral Large
4). All are multiplied by. DeepSeek-V4 stores experts as MXFP4, two values a byte, beside layers in FP8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.errors import UnsupportedModelError
from loaders.formats.fp4 import EXPONENTS, MXFP4_GROUP, fp4_matrix
from loaders.formats.schemes import Scaled
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, matrix, take

SCALE_DTYPES = ("F32", "BF16", "F16", *EXPONENTS)
SCALE = ".scale"  # of a weight; norms and other modules may have a parameter of that name
LEAVES = (".weight_scale_inv", ".weight_scale", ".qscale_weight", SCALE)
FP4_DTYPES = ("I8", "U8")  # two values a byte


@dataclass(frozen=True)
class Fp8Format:
    """`block` is None if a weight has one scale, or one per row."""

    block: tuple[int, int] | None
    by_row: bool = False
    label: str = "FP8"

    @classmethod
    def read(cls, settings: Settings) -> Fp8Format:
        settings.choice("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
        return cls(None if settings.values.get("weight_block_size") is None else settings.block("weight_block_size"))

    @classmethod
    def read_fbgemm(cls, settings: Settings) -> Fp8Format:
        return cls(None, by_row=True)

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for leaf in LEAVES:
            for base in base_names(tensors, leaf):
                weight = tensors.get(f"{base}.weight")
                if leaf == SCALE and (weight is None or weight.dtype not in ("F8_E4M3", *FP4_DTYPES)):
                    continue
                yield self._weight(tensors, base, leaf)

    def _weight(self, tensors: Tensors, base: str, leaf: str) -> PackedWeight:
        weight = take(tensors, f"{base}.weight", ["F8_E4M3", *FP4_DTYPES], because=f" for {base}{leaf}")
        if len(weight.shape) == 3:
            raise UnsupportedModelError(
                f"{weight.file}: {weight.name} {list(weight.shape)} holds the experts of a layer in one tensor of FP8, "
                "which cannot be run. Use a version of the model in 16 bits, GGUF, AWQ or GPTQ."
            )
        if weight.dtype in FP4_DTYPES:
            return fp4_matrix(tensors, base, weight, MXFP4_GROUP, None, in_float32=True, leaf=leaf)
        outputs, inputs = matrix(weight)
        whole, by_row = (outputs, inputs), (1, inputs)
        sizes: dict[tuple[int, ...], tuple[int, int]] = {(1,): whole, (): whole, (outputs, 1): by_row}
        rows, columns = self.block or (by_row if self.by_row else whole)
        sizes[-(-outputs // rows), -(-inputs // columns)] = rows, columns
        if self.by_row:
            sizes[(outputs,)] = by_row
        scale = take(tensors, base + leaf, SCALE_DTYPES, *sizes, because=f" for blocks of {rows} × {columns}")
        rows, columns = sizes[scale.shape]
        scheme = Scaled(rows, columns, in_float32=True)
        return PackedWeight(f"{base}.weight", (outputs, inputs), scheme, {"weight": weight, "weight_scale": scale})
