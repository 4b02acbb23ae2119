"""FP8 (e4m3) with a scale per block (DeepSeek, Qwen), per row (fbgemm), or per tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.formats.schemes import Scaled
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, matrix, take

SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
LEAVES = (".weight_scale_inv", ".weight_scale")  # both are multiplied by


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
                yield self._weight(tensors, base, leaf)

    def _weight(self, tensors: Tensors, base: str, leaf: str) -> PackedWeight:
        weight = take(tensors, f"{base}.weight", ["F8_E4M3"], because=f" for {base}{leaf}")
        outputs, inputs = matrix(weight)
        rows, columns = self.block or (1 if self.by_row else outputs, inputs)
        shapes: list[tuple[int, ...]] = [(-(-outputs // rows), -(-inputs // columns))]
        if not self.block:
            shapes += [(outputs,)] if self.by_row else [(1,), ()]
        scale = take(tensors, base + leaf, SCALE_DTYPES, *shapes, because=f" for blocks of {rows} × {columns}")
        scheme = Scaled(rows, columns, in_float32=True)
        return PackedWeight(f"{base}.weight", (outputs, inputs), scheme, {"weight": weight, "weight_scale": scale})
