"""Decoding by plain torch on a GPU, where the fused kernels cannot run: few operations, and the values of a CPU.

Tensors on "meta" go the way of a GPU's: they count operations without memory or a GPU.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loaders.dequantize.lossless.plain import SHARE
from loaders.dequantize.plain import decode
from loaders.dequantize.plain_cost import LAUNCHES
from loaders.dequantize.side_by_side import BLOCK_VALUES
from loaders.dequantize.stacks import prepare
from loaders.formats.schemes import Awq, Codebook, Fp4, Ggml, Gptq, Lossless, Scaled, Scheme, Words
from loaders.gguf.types import BLOCKS
from loaders.lossless.bins import KINDS, Bins
from tests.samples.quantized.packed_weights import WEIGHTS, packed_weight

SIZE = 4096  # rows and columns
GROUPS = SIZE // 128
Stored = dict[str, tuple[tuple[int, ...], torch.dtype]]
HALF, WORD, BYTE = torch.float16, torch.int32, torch.uint8


def integers(bits: int, ordered: bool, symmetric: bool = False) -> Stored:
    stored: Stored = {"weight_packed": ((SIZE, SIZE * bits // 32), WORD), "weight_scale": ((SIZE, GROUPS), HALF)}
    if not symmetric:
        stored["weight_zero_point"] = ((SIZE * bits // 32, GROUPS), WORD)
    return stored if ordered else {**stored, "weight_g_idx": ((SIZE,), WORD)}


def gptq(bits: int, ordered: bool) -> Stored:
    words = SIZE * bits // 32
    stored: Stored = {
        "qweight": ((words, SIZE), WORD),
        "qzeros": ((GROUPS, words), WORD),
        "scales": ((GROUPS, SIZE), HALF),
    }
    return stored if ordered else {**stored, "g_idx": ((SIZE,), WORD)}


def scaled(dtype: torch.dtype, shape: tuple[int, int], zeros: bool = False) -> Stored:
    stored: Stored = {"weight": ((SIZE, SIZE), dtype), "weight_scale": (shape, HALF)}
    return {**stored, "weight_zero_point": (shape, torch.int8)} if zeros else stored


AWQ: Stored = {
    "qweight": ((SIZE, SIZE // 8), WORD),
    "qzeros": ((GROUPS, SIZE // 8), WORD),
    "scales": ((GROUPS, SIZE), HALF),
}
CODES: Stored = {
    "weight": ((SIZE * SIZE // 2, 1), BYTE),
    "weight.quant_map": ((16,), torch.float32),
    "weight.absmax": ((SIZE * SIZE // 64,), torch.float32),
}
NESTED: Stored = {
    **CODES,
    "weight.absmax": ((SIZE * SIZE // 64,), BYTE),
    "weight.nested_quant_map": ((256,), torch.float32),
    "weight.nested_absmax": ((SIZE * SIZE // 64 // 256,), torch.float32),
}
EXPERTS = 4
MXFP4: Stored = {
    "weight": ((EXPERTS, SIZE // 2, SIZE // 64, 16), BYTE),
    "weight_scale": ((EXPERTS, SIZE // 2, SIZE // 64), BYTE),
}
FLOAT8 = torch.float8_e4m3fn
NVFP4: Stored = {
    "weight": ((SIZE, SIZE // 2), BYTE),
    "weight_scale": ((SIZE, SIZE // 16), FLOAT8),
    "global_scale": ((1,), torch.float32),
}
MX: Stored = {"weight": ((SIZE, SIZE // 2), BYTE), "weight_scale": ((SIZE, SIZE // 32), BYTE)}
BY_COLUMN: Stored = {**NVFP4, "weight": ((SIZE // 2, SIZE), BYTE), "weight_scale": ((SIZE // 16, SIZE), FLOAT8)}


def lossless(bits: int) -> Stored:
    fixed = Bins(KINDS["BF16"], bits).fixed
    return {
        "code": ((SIZE * SIZE * bits // 8,), BYTE),
        "top": ((SIZE, SIZE // 32), BYTE),
        "begin": ((SIZE * SIZE // 256,), torch.int32),
        "fixed": ((SIZE * SIZE * fixed // 8,), BYTE),
        "further": ((SIZE * SIZE // 4,), BYTE),
        "apart_at": ((9,), torch.int32),
        "apart": ((9,), torch.bfloat16),
    }


MATRICES: list[tuple[Scheme, Stored]] = [
    (Awq(128), AWQ),
    *(
        (Gptq(bits, 128, less_one, ordered), gptq(bits, ordered))
        for bits in (4, 8)
        for less_one in (True, False)
        for ordered in (True, False)
    ),
    *((Words(bits, 128, ordered), integers(bits, ordered)) for bits in (4, 8) for ordered in (True, False)),
    (Words(4, 128, ordered=True), integers(4, ordered=True, symmetric=True)),
    (Scaled(1, SIZE), scaled(torch.int8, (SIZE, 1))),
    (Scaled(1, SIZE, factor=1 / 127), scaled(torch.int8, (SIZE, 1))),
    (Scaled(1, 128), scaled(torch.int8, (SIZE, GROUPS), zeros=True)),
    (Scaled(128, 128, in_float32=True), scaled(torch.float8_e4m3fn, (GROUPS, GROUPS))),
    (Scaled(96, 96), scaled(torch.float8_e4m3fn, (-(-SIZE // 96), -(-SIZE // 96)))),
    (Scaled(1, 32), scaled(torch.float8_e4m3fn, (SIZE, SIZE // 32))),
    (Fp4(32, input_major=True), MXFP4),
    (Fp4(16, divides=True), NVFP4),
    (Fp4(32), MX),
    (Fp4(16, in_float32=True, by_column=True), BY_COLUMN),
    (Codebook(64, "bfloat16"), CODES),
    (Codebook(64, "bfloat16", nested_block=256, nested_offset=0.1), NESTED),
    *(
        (Ggml(kind, heads, less), {"blocks": ((SIZE, SIZE // values * nbytes), BYTE)})
        for kind, (values, nbytes) in BLOCKS.items()
        for heads, less in ((0, 0.0), (32, 1.0))
    ),
    *((Lossless(bits, "BF16"), lossless(bits)) for bits in (3, 4, 5)),
    (Ggml("BF16"), {"blocks": ((SIZE, SIZE), torch.bfloat16)}),
]


class Launches(TorchDispatchMode):
    """Counts operations that are no views: what a GPU would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))


class Moved(TorchDispatchMode):
    """Bytes that operations read and write; what is broadcast is read once."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view and not operation.name().startswith("aten::empty"):
            self.nbytes += sum(map(_size, tree_leaves((args, kwargs, result))))
        return result


def _size(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    return value.itemsize * math.prod(size for size, stride in zip(value.shape, value.stride()) if stride)


def output(scheme: Scheme) -> Tensor:
    if isinstance(scheme, Fp4) and scheme.input_major:  # experts that are a matrix of 4096 × 4096 together
        return torch.empty(EXPERTS, SIZE // 2, SIZE // 2, dtype=torch.bfloat16, device="meta").mT
    out = torch.empty(SIZE, SIZE, dtype=torch.bfloat16, device="meta")
    return out.mT if scheme.input_major else out


@pytest.mark.parametrize(("scheme", "stored"), MATRICES, ids=[str(scheme) for scheme, _ in MATRICES])
def test_a_matrix_takes_few_launches(scheme: Scheme, stored: Stored, monkeypatch) -> None:
    monkeypatch.setitem(BLOCK_VALUES, "meta", BLOCK_VALUES["cuda"])
    operands = {role: torch.empty(shape, dtype=dtype, device="meta") for role, (shape, dtype) in stored.items()}
    prepare(scheme, torch.device("meta"))
    with Launches() as launches:
        decode(scheme, operands, output(scheme))
    assert launches.count <= (SHARE * 50 if isinstance(scheme, Lossless) else LAUNCHES + 1)


def test_every_scheme_is_counted() -> None:
    assert {type(packed_weight(case)[0]) for case in WEIGHTS} | {Ggml} == {type(scheme) for scheme, _ in MATRICES}


@pytest.mark.parametrize("case", WEIGHTS)
def test_large_blocks_give_the_same_values(case: str, monkeypatch) -> None:
    scheme, operands, shape, _ = packed_weight(case)
    out, expected = torch.empty(shape), torch.empty(shape)
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 512)
    decode(scheme, operands, expected)
    monkeypatch.setitem(BLOCK_VALUES, "cpu", BLOCK_VALUES["cuda"])
    decode(scheme, operands, out)
    assert torch.equal(out, expected)
