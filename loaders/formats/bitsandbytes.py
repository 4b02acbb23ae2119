"""bitsandbytes: 4-bit codes into a table of 16 values (nf4, fp4), and int8 with a scale per row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.formats.schemes import Codebook, Scaled
from loaders.formats.weights import PackedWeight, Settings, Tensors, base_names, matrix, take
from loaders.json_files import parse_object
from loaders.safetensors_files.headers import StoredTensor, read_tensor_bytes

CODES, NESTED_CODES = 16, 256
MAX_STATE_BYTES = 1 << 16
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class FourBitFormat:
    kind: str  # "nf4" or "fp4"

    @property
    def label(self) -> str:
        return f"bitsandbytes {self.kind}"

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for name in base_names(tensors, f".quant_state.bitsandbytes__{self.kind}"):
            yield self._weight(tensors, name)

    def _weight(self, tensors: Tensors, name: str) -> PackedWeight:
        state = _State.of(tensors[f"{name}.quant_state.bitsandbytes__{self.kind}"])
        count, because = math.prod(state.shape), f" for {name} {list(state.shape)} in blocks of {state.block}"
        blocks = count // state.block
        operands = {
            "weight": take(tensors, name, ["U8"], (count // 2, 1), because=because),
            "weight.quant_map": take(tensors, f"{name}.quant_map", ["F32"], (CODES,), because=because),
            "weight.absmax": take(
                tensors, f"{name}.absmax", ["U8" if state.nested_block else "F32"], (blocks,), because=because
            ),
        }
        if state.nested_block:
            nested = -(-blocks // state.nested_block)
            operands["weight.nested_quant_map"] = take(tensors, f"{name}.nested_quant_map", ["F32"], (NESTED_CODES,))
            operands["weight.nested_absmax"] = take(
                tensors, f"{name}.nested_absmax", ["F32"], (nested,), because=because
            )
        scheme = Codebook(state.block, state.dtype, state.nested_block, state.nested_offset)
        return PackedWeight(name, state.shape, scheme, operands)


@dataclass(frozen=True)
class _State:
    """What bitsandbytes stores as JSON beside each 4-bit weight."""

    shape: tuple[int, int]
    block: int
    dtype: str
    nested_block: int
    nested_offset: float

    @classmethod
    def of(cls, stored: StoredTensor) -> _State:
        if stored.dtype != "U8" or stored.nbytes > MAX_STATE_BYTES:
            raise ModelFilesError(f"{stored.file}: {stored.name} must be a short text stored as U8.")
        try:
            values = parse_object(read_tensor_bytes(stored))
        except ValueError as error:
            raise ModelFilesError(f"{stored.file}: {stored.name}: {error}.") from error
        state = _Values(stored, values)
        shape = state.get("shape", lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_positive, v)))
        block = state.get("blocksize", _is_positive)
        if math.prod(shape) % max(block, 2):
            raise ModelFilesError(f"{stored.file}: {stored.name}: {shape} are no whole number of blocks of {block}.")
        nested = "nested_blocksize" in values
        return cls(
            (shape[0], shape[1]),
            block,
            state.get("dtype", lambda v: v in DTYPES),
            state.get("nested_blocksize", _is_positive) if nested else 0,
            float(state.get("nested_offset", lambda v: type(v) in (int, float) and math.isfinite(v)))
            if nested
            else 0.0,
        )


@dataclass(frozen=True)
class _Values:
    stored: StoredTensor
    values: dict[str, Any]

    def get(self, name: str, is_right: Any) -> Any:
        value = self.values.get(name)
        if not is_right(value):
            raise ModelFilesError(f"{self.stored.file}: {self.stored.name}: {name} is {value!r:.80}.")
        return value


def _is_positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


@dataclass(frozen=True)
class EightBitFormat:
    label: str = "bitsandbytes int8"

    def weights(self, tensors: Tensors) -> Iterator[PackedWeight]:
        for base in base_names(tensors, ".SCB"):
            weight = take(tensors, f"{base}.weight", ["I8"], because=f" for {base}.SCB")
            outputs, inputs = matrix(weight)
            scale = take(tensors, f"{base}.SCB", ["F32"], (outputs,), (outputs, 1), because=f" for {base}.weight")
            if f"{base}.weight_format" in tensors and any(read_tensor_bytes(tensors[f"{base}.weight_format"])[:1]):
                raise UnsupportedModelError(f"{weight.file}: {base}.weight is not stored row by row; save it again.")
            # the library multiplies by exactly this number, 1/127 in float32
            scheme = Scaled(1, inputs, in_float32=True, factor=7.874015718698502e-3)
            yield PackedWeight(f"{base}.weight", (outputs, inputs), scheme, {"weight": weight, "weight_scale": scale})


def read(settings: Settings) -> FourBitFormat | EightBitFormat:
    """The format that a `quantization_config` of bitsandbytes describes."""
    if settings.values.get("load_in_8bit") or settings.values.get("_load_in_8bit"):
        return EightBitFormat()
    if not (settings.values.get("load_in_4bit") or settings.values.get("_load_in_4bit")):
        raise settings.unsupported("neither load_in_4bit nor load_in_8bit is set")
    settings.choice("bnb_4bit_quant_storage", ("uint8",), "uint8")
    return FourBitFormat(settings.choice("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4"))
