"""GPTQ: 4 or 8 bits, packed along the inputs, which may be grouped in activation order (g_idx)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.formats.schemes import Gptq
from loaders.formats.weights import (
    WORD_BITS,
    PackedWeight,
    Settings,
    Tensors,
    base_names,
    groups,
    matrix,
    take,
)

VERSIONS = ("gptq", "gptq_v2")
STORED = ("bits", "group_size", "format", "checkpoint_format", "pack_dtype")  # settings that say how weights are stored


@dataclass(frozen=True)
class GptqFormat:
    bits: int
    group_size: int | None
    zeros_less_one: bool

    @property
    def label(self) -> str:
        return f"GPTQ {self.bits}-bit"

    @classmethod
    def read(cls, settings: Settings) -> GptqFormat:
        version = settings.choice("checkpoint_format", VERSIONS, settings.choice("format", VERSIONS, "gptq"))
        if settings.values.get("is_marlin_format"):
            raise settings.unsupported("is_marlin_format is set; only gptq and gptq_v2 can be run")
        _check_dynamic(settings)
        return cls(settings.choice("bits", (4, 8)), settings.group_size(), version == "gptq")

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        per_word = WORD_BITS // self.bits
        for base in base_names(tensors, ".qweight"):
            because = f" for {base}.qweight with {self.bits} bits"
            qweight = take(tensors, f"{base}.qweight", ["I32"])
            words, outputs = matrix(qweight)
            inputs = words * per_word
            count = groups(inputs, self.group_size, qweight)
            operands = {
                "qweight": qweight,
                "qzeros": take(tensors, f"{base}.qzeros", ["I32"], (count, outputs // per_word), because=because),
                "scales": take(tensors, f"{base}.scales", ["F16", "BF16"], (count, outputs), because=because),
            }
            if f"{base}.g_idx" in tensors:
                operands["g_idx"] = take(tensors, f"{base}.g_idx", ["I32"], (inputs,), because=because)
            scheme = Gptq(self.bits, inputs // count, self.zeros_less_one, ordered="g_idx" not in operands)
            yield PackedWeight(f"{base}.weight", (outputs, inputs), scheme, operands)


def _check_dynamic(settings: Settings) -> None:
    """Patterns with "-:" exclude modules, which the files show too; others may change how modules are stored."""
    dynamic = settings.part("dynamic")
    for pattern in dynamic.values:
        if pattern.startswith("-:"):
            continue
        own = dynamic.part(pattern).values
        if changed := [name for name in STORED if name in own and own[name] != settings.values.get(name)]:
            raise settings.unsupported(f"dynamic gives modules a {changed[0]} of their own, which cannot be run")
