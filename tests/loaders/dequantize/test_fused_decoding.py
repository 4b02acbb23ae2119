"""Fused kernels decode what plain torch decodes, bit for bit: on a GPU, or else in triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
pytest.importorskip("triton", reason="triton is not installed: PyTorch for CUDA brings it")

from loaders.dequantize.kernels import decode_fused
from loaders.dequantize.lossless.kernels import approximate as fused_approximate
from loaders.dequantize.lossless.plain import approximate
from loaders.dequantize.plain import decode
from loaders.dequantize.stacks import approximate_code, fused_kernels
from loaders.lossless.bins import KINDS, Bins
from loaders.lossless.encode import code_of
from tests.samples.quantized.packed_weights import WEIGHTS, packed_weight

OF_ANY_SIZE = [case for case in WEIGHTS if case.startswith("lossless")]  # padded where they are stacked
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("case", WEIGHTS)
def test_kernels_equal_plain_torch(case):
    """Into memory of either order."""
    scheme, stored, shape, _ = packed_weight(case)
    operands = {role: tensor.to(DEVICE) for role, tensor in stored.items()}
    turned = torch.empty((*shape[:-2], shape[-1], shape[-2]), dtype=torch.bfloat16, device=DEVICE).mT
    for out in (torch.empty(shape, device=DEVICE), turned):
        expected = torch.empty(shape, dtype=out.dtype)
        decode(scheme, stored, expected)
        decode_fused(scheme, operands, out.fill_(torch.nan))
        assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize(
    "case", [case for case in WEIGHTS if case not in ("MXFP4", "ModelOpt experts", "nf4 nested", *OF_ANY_SIZE)]
)
def test_experts_are_decoded_in_one_launch(case):
    """Two experts of two matrices each, one above the other in a parameter that is stored transposed."""
    members = [packed_weight(case, seed) for seed in range(4)]
    scheme, first, (rows, columns), _ = members[0]
    operands = {role: torch.stack([member[1][role] for member in members]).to(DEVICE) for role in first}
    parameter = torch.full((2, columns, 2 * rows), torch.nan, device=DEVICE).mT
    decode_fused(scheme, operands, parameter.unflatten(1, (2, rows)))
    for index, (_, tensors, _, _) in enumerate(members):
        expected = torch.empty(rows, columns)
        decode(scheme, tensors, expected)
        above = index % 2 * rows
        assert torch.equal(parameter[index // 2, above : above + rows].cpu(), expected)


@pytest.mark.parametrize("case", ["awq", "words 4", "fp8 blocks", "nf4", "MXFP4", "NVFP4", "ModelOpt experts"])
def test_experts_that_are_not_chosen_are_left_alone(case):
    scheme, stored, shape, _ = packed_weight(case)
    operands = {role: tensor.to(DEVICE) for role, tensor in stored.items()}
    if len(shape) == 2:  # two members for each of three experts
        operands = {role: torch.stack([tensor] * 6) for role, tensor in operands.items()}
        shape = (6, *shape)
    out = torch.full(shape, torch.nan, device=DEVICE)
    decode_fused(scheme, operands, out, torch.tensor([1, 0, 1], dtype=torch.uint8, device=DEVICE))
    first, left_out, last = out.chunk(3)
    assert left_out.isnan().all() and not first.isnan().any() and not last.isnan().any()


def test_another_order_of_nibbles_shows():
    """The control."""
    scheme, operands, shape, decoded = packed_weight("gptq")
    out = torch.empty(shape, device=DEVICE)
    words = operands["qweight"]
    turned = {**operands, "qweight": ((words & 0x0F0F0F0F) << 4) | ((words >> 4) & 0x0F0F0F0F)}
    decode_fused(scheme, {role: tensor.to(DEVICE) for role, tensor in turned.items()}, out)
    assert not torch.equal(out.cpu(), decoded.float())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels work")
def test_where_the_kernels_cannot_run_plain_torch_decodes():
    """Whatever it is that stops them: here, a PyTorch that was built without CUDA."""
    with pytest.warns(UserWarning, match="dequantized by plain torch, which is slower: AssertionError"):
        assert fused_kernels.__wrapped__() is None


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_stacked_codes_are_approximated_one_by_one(bits):
    bins, generator = Bins(KINDS["BF16"], bits), torch.Generator().manual_seed(bits)
    weights = torch.randn(3, 2, 256, generator=generator).to(torch.bfloat16)
    code, top = (torch.stack(parts) for parts in zip(*(code_of(one, bins) for one in weights)))
    each, plain, out = torch.empty(3, 512), torch.empty(1536), torch.empty(1536, device=DEVICE)
    for number in range(3):
        approximate(bins, code[number], top[number], each[number])
    approximate_code(bins, code, top, plain, 3)
    fused_approximate(bins, code.to(DEVICE), top.to(DEVICE), out.fill_(torch.nan), 3)
    assert torch.equal(plain, each.view(-1)) and torch.equal(out.cpu(), plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, 4, 5])
def test_approximated_weights_equal_plain_torch(kind, bits):
    dtype, bins = {"BF16": torch.bfloat16, "F16": torch.float16}[kind], Bins(KINDS[kind], bits)
    weights = torch.randn(8, 256, generator=torch.Generator().manual_seed(bits)) / 50
    weights[0] *= 1e-6  # float16 ends below such bins
    code, top = code_of(weights.to(dtype), bins)
    for out in (torch.empty(2048, device=DEVICE), torch.empty(2048, dtype=dtype, device=DEVICE)):
        expected = torch.empty(2048, dtype=out.dtype)
        approximate(bins, code, top, expected)
        fused_approximate(bins, code.to(DEVICE), top.to(DEVICE), out.fill_(torch.nan))
        assert torch.equal(out.cpu(), expected)
