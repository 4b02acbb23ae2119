"""AWQ (gemm): 4-bit groups with zero points, outputs interleaved within a word.

AutoAWQ writes "bits" and "group_size"; llm-awq and AutoAWQ's quant_config.json "w_bit" and "q_group_size".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.formats.schemes import Awq
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, groups, matrix, take

NIBBLES = 8  # of a word


@dataclass(frozen=True)
class AwqFormat:
    group_size: int | None
    label: str = "AWQ 4-bit"

    @classmethod
    def read(cls, settings: Settings) -> AwqFormat:
        settings.choice("bits" if "bits" in settings.values else "w_bit", (4,), 4)
        settings.choice("version", ("gemm", "GEMM"), "gemm")
        settings.choice("checkpoint_format", ("gemm",), settings.choice("format", ("gemm",), "gemm"))
        settings.choice("zero_point", (True, False), True)  # if False, all are 8, but stored all the same
        return cls(settings.group_size(128, "group_size" if "group_size" in settings.values else "q_group_size"))

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, ".qweight"):
            because = f" for {base}.qweight"
            qweight = take(tensors, f"{base}.qweight", ["I32"])
            inputs, words = matrix(qweight)
            count = groups(inputs, self.group_size, qweight)
            qzeros = take(tensors, f"{base}.qzeros", ["I32"], (count, words), because=because)
            scales = take(tensors, f"{base}.scales", ["F16", "BF16"], (count, words * NIBBLES), because=because)
            yield PackedWeight(
                f"{base}.weight",
                (words * NIBBLES, inputs),
                Awq(inputs // count),
                {"qweight": qweight, "qzeros": qzeros, "scales": scales},
            )
