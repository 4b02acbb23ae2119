"""FP8 in blocks, as DeepSeek and Qwen store it: weight e4m3 and weight_scale_inv, one scale for 128 × 128 values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.formats.schemes import Scaled
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, matrix, take

SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")


@dataclass(frozen=True)
class Fp8Format:
    """`block` is None where a weight has one scale."""

    block: tuple[int, int] | None
    label: str = "FP8"

    @classmethod
    def read(cls, settings: Settings) -> Fp8Format:
        settings.choice("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
        block = settings.values.get("weight_block_size")
        if block is None:
            return cls(None)
        if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise settings.unsupported(f"weight_block_size is {block!r:.80}; two positive numbers can be run")
        return cls((block[0], block[1]))

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, ".weight_scale_inv"):
            weight = take(tensors, f"{base}.weight", ["F8_E4M3"], because=f" for {base}.weight_scale_inv")
            outputs, inputs = matrix(weight)
            rows, columns = self.block or (outputs, inputs)
            shape = (-(-outputs // rows), -(-inputs // columns))
            shapes = [shape] if self.block else [(1, 1), (1,), ()]
            scale = take(
                tensors, f"{base}.weight_scale_inv", SCALE_DTYPES, *shapes, because=f" for blocks of {rows} × {columns}"
            )
            scheme = Scaled(rows, columns, in_float32=True)
            yield PackedWeight(f"{base}.weight", (outputs, inputs), scheme, {"weight": weight, "weight_scale": scale})
