"""Products with codes are those with the weights that plain torch decodes: on a GPU, or in triton's interpreter."""

import itertools
import os

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
pytest.importorskip("triton", reason="triton is not installed: PyTorch for CUDA brings it")

from loaders.dequantize.lossless.plain import approximate
from loaders.dequantize.lossless.product_kernel import multiply
from loaders.lossless.bins import KINDS, Bins, plane_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def coded(bits: int, dtype: torch.dtype, outputs: int, inputs: int) -> tuple[Bins, Tensor, Tensor, Tensor]:
    """Every code under tops of all sizes, some of which end below float16; and the decoded weights."""
    bins, generator = (
        Bins(KINDS["F16" if dtype == torch.float16 else "BF16"], bits),
        torch.Generator().manual_seed(bits),
    )
    code = torch.randint(0, 256, (plane_bytes(bits, outputs * inputs),), dtype=torch.uint8, generator=generator)
    top = torch.randint(0, 120, (outputs * inputs // 32,), dtype=torch.uint8, generator=generator)
    weights = torch.empty(outputs * inputs, dtype=dtype)
    approximate(bins, code, top, weights)
    return bins, code, top, weights.view(outputs, inputs)


def multiplied(bins: Bins, code: Tensor, top: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
    on_device = (None if tensor is None else tensor.to(DEVICE) for tensor in (code, top, x, bias))
    product = multiply(bins, *on_device)
    return None if product is None else product.cpu()


def is_rounded(found: Tensor, x: Tensor, weights: Tensor, bias: Tensor) -> bool:
    """Whether a product differs by no more than sums in float32, in any order, and the rounding of the result."""
    exact = x.double() @ weights.double().T + bias.double()
    terms = x.double().abs() @ weights.double().abs().T + bias.double().abs()
    sums = (x.shape[-1] + 1) * 2**-24 * terms
    return bool((found.double() - exact).abs().le(sums + torch.finfo(found.dtype).eps * (exact.abs() + sums)).all())


SIZES = [(37, 256), (24, 96)]  # outputs and inputs; each with all bits and all dtypes
EVERY_KIND = [
    (bits, dtype, *SIZES[(bits + turn) % 2]) for bits, (turn, dtype) in itertools.product((3, 4, 5), enumerate(DTYPES))
]
# Rows of a block's beginning, middle and end. Bits and dtype repeat after nine: each block meets all of them.
ROWS = [
    *(1, 2, 3, 4, 5, 8, 9, 15, 16),
    *(17, 18, 19, 20, 21, 24, 25, 31, 32),
    *(33, 34, 35, 36, 37, 47, 48, 49, 50, 63, 64),
]


@pytest.mark.parametrize(("bits", "dtype", "outputs", "inputs"), EVERY_KIND, ids=str)
def test_identity_rows_give_the_weights_bit_for_bit(bits, dtype, outputs, inputs):
    bins, code, top, weights = coded(bits, dtype, outputs, inputs)
    rows = torch.eye(inputs, dtype=dtype)
    found = torch.cat([multiplied(bins, code, top, part) for part in rows.split(64)])
    assert torch.equal(found.T, weights)


@pytest.mark.parametrize("rows", ROWS)
def test_any_number_of_rows(rows):
    dtype, bits = DTYPES[rows % 3], 3 + rows // 3 % 3
    bins, code, top, weights = coded(bits, dtype, 19, 256)
    x, bias = (torch.randn(size, generator=torch.Generator().manual_seed(rows)).to(dtype) for size in ((rows, 256), 19))
    found = multiplied(bins, code, top, x, bias)
    assert is_rounded(found, x, weights, bias)
    assert not is_rounded(found, x.roll(1, dims=1), weights, bias), "the control"


def test_rows_of_any_layout():
    bins, code, top, weights = coded(4, torch.float32, 8, 160)
    for x in (torch.randn(2, 5, 160), torch.randn(160, 7).T, torch.randn(6, 320)[:, :160], torch.randn(160)):
        found = multiplied(bins, code, top, x)
        assert found.shape == (*x.shape[:-1], 8)
        assert is_rounded(found.view(-1, 8), x.reshape(-1, 160), weights, torch.zeros(8))


@pytest.mark.parametrize("rows", [0, 65])
def test_other_numbers_of_rows_are_left_to_decoding(rows):
    bins, code, top, _ = coded(4, torch.float32, 8, 160)
    assert multiplied(bins, code, top, torch.ones(rows, 160)) is None
