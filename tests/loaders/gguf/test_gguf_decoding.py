"""ggml's blocks decoded: bit for bit what the `gguf` package gives, on a CPU and by the fused kernel."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from loaders.dequantize.ggml import codebooks
from loaders.dequantize.ggml.codebooks import CODEBOOKS
from loaders.dequantize.hooks import decode_before_use, scratch_bytes
from loaders.dequantize.plain import decode
from loaders.dequantize.side_by_side import BLOCK_VALUES
from loaders.formats.schemes import Ggml
from loaders.formats.weights import PackedWeight
from loaders.gguf.header import GgufTensor
from loaders.gguf.types import BLOCKS, TYPE_NAMES
from loaders.modules.quantized import Packed
from loaders.modules.skeleton import DecodedParameter
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
@every_way
def test_any_bytes_are_decoded_as_the_package_does(way, kind):
    """Scales of every size, of either sign, infinite and none; of what is no number the bits may differ."""
    blocks = np.random.default_rng(Type[kind].value).integers(0, 256, (24, 1024 * BLOCKS[kind][1] // BLOCKS[kind][0]))
    blocks = blocks.astype(np.uint8)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind]))
        found = decoded(way, Ggml(kind), torch.from_numpy(blocks), expected.shape)
    numbers = ~expected.isnan()
    assert torch.equal(numbers, ~found.isnan()) and numbers.float().mean() > 0.8
    assert torch.equal(found[numbers].view(torch.int32), expected[numbers].view(torch.int32))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_a_changed_codebook_shows(kind, monkeypatch):
    """The control."""
    blocks = random_blocks(kind, SHAPE, 1.0)
    book = CODEBOOKS[kind]
    monkeypatch.setitem(CODEBOOKS, kind, replace(book, levels=(*book.levels[:-1], book.levels[-1] + 1)))
    codebooks._made_for.cache_clear()
    found = decoded(plain, Ggml(kind), torch.from_numpy(blocks), SHAPE)
    codebooks._made_for.cache_clear()
    assert not torch.equal(found, torch.from_numpy(gguf.quants.dequantize(blocks, Type[kind])))


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ4_XS", "MXFP4"])
def test_what_is_looked_up_is_on_the_device_before_the_first_pass(kind, monkeypatch):
    """A copy to a GPU could not be captured in a graph."""
    linear = torch.nn.Linear(256, 4, bias=False)
    stored = torch.from_numpy(random_blocks(kind, (4, 256), 1.0))
    tensor = GgufTensor("weight", Path(), "U8", tuple(stored.shape), 0, stored.numel(), kind, (4, 256))
    member = PackedWeight("weight", (4, 256), Ggml(kind), {"blocks": tensor})
    packed = Packed((4, 256), Ggml(kind), (member,), {"blocks": stored})
    codebooks._made_for.cache_clear()
    parameter = DecodedParameter("weight", packed, torch.float32, ((linear, "weight"),))
    decode_before_use([parameter], torch.empty(scratch_bytes([parameter]), dtype=torch.uint8))
    assert codebooks._made_for.cache_info().misses == 1
    found = linear(torch.eye(256)).T
    assert torch.equal(found, torch.from_numpy(gguf.quants.dequantize(stored.numpy(), Type[kind])))
    assert codebooks._made_for.cache_info().misses == 1


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_every_size(kind):
    """Tiny ones that float16 holds with fewer bits, too."""
    blocks = random_blocks(kind, SHAPE, 1e-3 if kind in ("Q3_K", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS") else 1e-4)
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
