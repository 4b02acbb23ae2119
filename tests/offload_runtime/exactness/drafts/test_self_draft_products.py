"""Drafts of the target's own copy whose products read the codes, as on a GPU: the kernel in triton's interpreter, or a
stand-in in plain torch."""

import os
from collections.abc import Callable
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from loaders.dequantize.stacks import approximate_code
from loaders.lossless.bins import Bins
from offload_runtime.model.low_bits import copies
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.offload_runtime.exactness.drafts.test_self_draft import OPTIONS, SIZES, streams
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, make_checkpoint, streaming_runtime

__all__ = ["streams"]
pytestmark = pytest.mark.usefixtures("streams")
NEW_TOKENS = 24


def in_plain_torch(bins: Bins, code: Tensor, top: Tensor, x: Tensor, bias: Tensor | None) -> Tensor | None:
    weights = x.new_empty(top.numel() * 32 // x.shape[-1], x.shape[-1])
    approximate_code(bins, code, top, weights.view(-1))
    return F.linear(x, weights, bias) if prod(x.shape[:-1]) <= 64 else None


def in_the_kernel(*args: Tensor) -> Tensor | None:
    pytest.importorskip("triton", reason="triton is not installed: PyTorch for CUDA brings it")
    from loaders.dequantize.lossless.product_kernel import multiply

    return multiply(*args)


def nothing(bins: Bins, code: Tensor, top: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """The control: a product that is wrong makes bad drafts, and the same text."""
    return x.new_zeros(*x.shape[:-1], top.numel() * 32 // x.shape[-1])


def passes(
    family: str,
    monkeypatch: pytest.MonkeyPatch,
    multiply: Callable[..., Tensor | None] | None,
    new_tokens: int = NEW_TOKENS,
    tree_depth: int = 5,
    **sizes: int,
) -> int:
    """Those that the text takes, which is the target's."""
    calls = 0

    def counted(*args: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        return multiply(*args)

    monkeypatch.setattr(copies, "code_product", lambda device: counted if multiply else None)
    directory = checkpoint(family, **SIZES, **sizes)
    with streaming_runtime(directory, "self", **{**OPTIONS, "tree_depth": tree_depth}) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=new_tokens, temperature=0)
    assert reply.token_ids == greedy(directory, PROMPT, new_tokens)
    assert (calls > 0) == (multiply is not None)
    return reply.stats.passes


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel takes no tensors of the CPU there")
def test_the_kernel_drafts_as_decoded_weights_do(monkeypatch):
    """Few tokens of one layer: a launch takes the interpreter a third of a second."""
    one_layer = {"new_tokens": 4, "tree_depth": 1, "num_hidden_layers": 1}
    assert passes("llama", monkeypatch, in_the_kernel, **one_layer) == passes("llama", monkeypatch, None, **one_layer)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "mixtral", "gpt_oss"])
def test_products_draft_as_decoded_weights_do(family, monkeypatch):
    """With biases, projections in one, and experts, which are decoded."""
    plain = passes(family, monkeypatch, None)
    assert passes(family, monkeypatch, in_plain_torch) == plain < passes(family, monkeypatch, nothing)


def test_sampled_texts_follow_the_targets_distribution(monkeypatch):
    monkeypatch.setattr(copies, "code_product", lambda device: in_plain_torch)
    directory = make_checkpoint("llama", 9, False, sampling.TINY)
    options = {"context_length": 32, "tree": "adaptive", "dtype": "float32", **sampling.BUSHY}
    with streaming_runtime(directory, "self:3", **options) as runtime:
        counts, single_passes = sampling.sampled(runtime, range(sampling.TEXTS))
    assert sampling.agreement(counts, sampling.joint_distribution()) > 1e-3
    assert single_passes > 0.02, "trees were drafted and accepted"
