"""A weight of which only a code is known: few rows multiply the code, anything else decodes it first."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loaders.dequantize.lossless.plain import approximate
from loaders.lossless.bins import KINDS, Bins
from loaders.lossless.encode import code_of
from offload_runtime.model.low_bits.coded_weight import CodedWeight

BINS = Bins(KINDS["BF16"], 4)
SHAPE = (16, 64)


def decoded(bins: Bins, code: Tensor, top: Tensor) -> Tensor:
    weights = torch.empty(SHAPE)
    approximate(bins, code, top, weights.view(-1))
    return weights


def multiply(bins: Bins, code: Tensor, top: Tensor, x: Tensor, bias: Tensor | None) -> Tensor | None:
    """As the kernel does, which does not look at dtypes."""
    return F.linear(x.float(), decoded(bins, code, top), bias) if x.numel() <= 64 * x.shape[-1] else None


@pytest.fixture
def code() -> tuple[Tensor, Tensor]:
    return code_of(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16), BINS)


@pytest.fixture
def weight(code) -> CodedWeight:
    return CodedWeight.of(torch.full(SHAPE, torch.nan), BINS, code, multiply)


def test_few_rows_write_no_weight(weight, code):
    layer = nn.Linear(SHAPE[1], SHAPE[0])
    layer._parameters["weight"] = weight
    x = torch.randn(2, 32, SHAPE[1])
    assert torch.equal(layer(x), F.linear(x, decoded(BINS, *code), layer.bias))
    assert weight.shape == SHAPE and weight.dtype == torch.float32 and weight.device == x.device
    assert isinstance(weight, nn.Parameter) and weight._memory.isnan().all()


@pytest.mark.parametrize(
    "use",
    [
        lambda weight: F.linear(torch.eye(64).repeat(2, 1), weight)[:64].T,
        lambda weight: F.linear(torch.eye(64, dtype=torch.float64), weight.double()).T,
        lambda weight: (torch.eye(64) @ weight.T).T,
        lambda weight: torch.cat([weight, weight])[:16],
        lambda weight: weight.mT.mT,
        lambda weight: weight.data,
        lambda weight: torch.stack([weight[row] for row in range(16)]),
        lambda weight: F.embedding(torch.arange(16), weight),
    ],
)
def test_any_other_use_finds_the_weights(weight, code, use):
    found = use(weight)
    assert torch.equal(found.float(), decoded(BINS, *code)) and type(found) is Tensor


def test_rows_of_another_dtype_are_refused_as_by_any_weight(weight):
    with pytest.raises(RuntimeError, match="dtype"):
        F.linear(torch.ones(1, 64, dtype=torch.float64), weight)
