"""ggml's blocks decoded: bit for bit what the `gguf` package gives, on a CPU and by the fused kernel."""

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from loaders.dequantize.plain import decode
from loaders.dequantize.side_by_side import BLOCK_VALUES
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS, TYPE_NAMES
from tests.samples.gguf_samples import KINDS, Type, gguf, random_blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (24, 768)


def plain(scheme, stored, out):
    decode(scheme, {"blocks": stored}, out)


def fused(scheme, stored, out):
    from loaders.dequantize.kernels import decode_fused

    decode_fused(scheme, {"blocks": stored.to(DEVICE)}, out)


no_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed: PyTorch for CUDA brings it"
)
every_way = pytest.mark.parametrize("way", [plain, pytest.param(fused, marks=no_triton)])


def decoded(way, scheme, stored, shape, dtype=torch.float32):
    out = torch.full(shape, torch.nan, dtype=dtype, device=DEVICE if way is fused else "cpu")
    way(scheme, stored, out)
    return out.cpu()


@pytest.mark.parametrize("kind", KINDS)
@every_way
def test_equals_the_package_bit_for_bit(way, kind):
    blocks = random_blocks(kind, SHAPE, 1.0)
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind]))
    found = decoded(way, Ggml(kind), torch.from_numpy(blocks), SHAPE)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(decoded(way, Ggml(kind), torch.from_numpy(blocks), SHAPE, dtype), expected.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_every_size(kind):
    """Tiny ones that float16 holds with fewer bits, too."""
    blocks = random_blocks(kind, SHAPE, 3e-4 if kind in ("Q6_K", "Q8_0") else 1e-6)
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind]))
    assert expected.abs().max() > 0
    assert torch.equal(decoded(plain, Ggml(kind), torch.from_numpy(blocks), SHAPE), expected)


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F16", "BF16", "F32"])
@every_way
def test_rows_in_pairs(way, kind):
    """The converter's own permutation, and its inverse."""
    heads, rows = 4, 24
    tensor = np.arange(rows)[:, None] + np.zeros((rows, 256), np.float32)
    order = tensor.reshape(heads, 2, rows // heads // 2, 256).swapaxes(1, 2).reshape(tensor.shape)
    if kind == "Q4_K":
        blocks = random_blocks(kind, (rows, 256), 1.0)
        values = torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind]))
        expected = values[np.argsort(order[:, 0])]
        stored = torch.from_numpy(blocks)
    else:
        stored = torch.from_numpy(gguf.quants.quantize(order, Type[kind]))
        if kind == "BF16":
            stored = stored.view(torch.bfloat16)
        expected = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor, Type[kind]), Type[kind]).copy())
    assert torch.equal(decoded(way, Ggml(kind, paired_heads=heads), stored, (rows, 256)), expected.view(rows, 256))
    assert not torch.equal(decoded(way, Ggml(kind), stored, (rows, 256)), expected.view(rows, 256)), "the control"


@every_way
def test_vectors_and_what_was_added(way):
    norm = torch.randn(200)
    assert torch.equal(decoded(way, Ggml("F32", less=1.0), norm + 1, (200,)), (norm + 1) - 1)
    bias = torch.arange(16.0)
    stored = bias.view(2, 2, 4).swapaxes(1, 2).flatten()
    assert torch.equal(decoded(way, Ggml("F32", paired_heads=2), stored, (16,)), bias)


def test_work_goes_in_blocks(monkeypatch):
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 1000)
    blocks = random_blocks("Q6_K", SHAPE, 1.0)
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, Type.Q6_K))
    assert torch.equal(decoded(plain, Ggml("Q6_K"), torch.from_numpy(blocks), SHAPE), expected)


@no_triton
def test_experts_that_are_not_hit_are_left_out():
    from loaders.dequantize.kernels import decode_fused

    blocks = np.stack([random_blocks("Q4_K", SHAPE, 1.0, seed) for seed in "abcd"])  # two for each of two experts
    out = torch.full((2, 2, *SHAPE), torch.nan, device=DEVICE)
    routed = torch.tensor([0, 1], dtype=torch.uint8, device=DEVICE)
    decode_fused(Ggml("Q4_K"), {"blocks": torch.from_numpy(blocks).to(DEVICE)}, out, routed)
    assert out[0].isnan().all()
    assert torch.equal(out[1].cpu(), torch.from_numpy(gguf.quants.dequantize(blocks[2:], Type.Q4_K)))


@no_triton
def test_a_stack_in_one_launch():
    blocks = np.stack([random_blocks("Q5_K", SHAPE, 1.0, seed) for seed in ("a", "b")])
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, Type.Q5_K))
    assert torch.equal(decoded(fused, Ggml("Q5_K"), torch.from_numpy(blocks), (2, *SHAPE)), expected)


def test_sizes_and_names_are_the_package_s():
    assert {kind: gguf.GGML_QUANT_SIZES[Type[kind]] for kind in BLOCKS} == BLOCKS
    assert all(TYPE_NAMES.get(kind.value, kind.name) == kind.name for kind in Type)
