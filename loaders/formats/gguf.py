"""GGUF: each tensor states its own ggml type; values may be stored in another row order or with an offset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loaders.errors import ModelFilesError
from loaders.formats.schemes import Ggml
from loaders.formats.weights import PackedWeight, Settings, Tensors
from loaders.gguf.header import GgufTensor
from loaders.gguf.types import READABLE


@dataclass(frozen=True)
class GgufFormat:
    kind: str  # of most bytes

    @property
    def label(self) -> str:
        return f"GGUF {self.kind}"

    @classmethod
    def read(cls, settings: Settings) -> GgufFormat:
        """Settings that `gguf_config` made; no config.json has them."""
        return cls(settings.choice("kind", READABLE))

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for name, tensor in tensors.items():
            if not isinstance(tensor, GgufTensor) or not tensor.is_packed:
                continue
            rows = tensor.values[0]
            if tensor.paired_heads and rows % (2 * tensor.paired_heads):
                raise ModelFilesError(
                    f"{tensor.file}: {name} has {rows} rows, which {tensor.paired_heads} heads cannot have in pairs."
                )
            scheme = Ggml(tensor.kind, tensor.paired_heads, tensor.less)
            yield PackedWeight(name, tensor.values, scheme, {"blocks": tensor})
