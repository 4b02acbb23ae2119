"""What attention asks of PyTorch's kernels on a GPU, as far as a CPU can tell."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from offload_runtime.model.attention import MASK_ALIGNMENT, attending, tree_attention, tree_mask
from offload_runtime.model.rows import text_rows

CPU = torch.device("cpu")


def everything(batch, head, row, column):
    return (row >= 0) & (column >= 0)


@pytest.mark.parametrize("past", [0, 3, 8, 13])
def test_rows_of_masks_begin_aligned(past):
    """Else the memory-efficient kernel copies the mask in every layer."""
    rows = text_rows(past, 5, CPU)
    with attending(rows):
        mask = tree_mask(1, 5, past + 5, everything, torch.bfloat16, CPU)
    assert mask.shape == (1, 1, 5, past + 5) and mask.stride(-1) == 1
    assert all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1])
    assert torch.equal(mask == 0, rows.allowed(everything)[None, None])


@pytest.mark.parametrize("enabled", [True, False])
def test_cudnn_plans_no_pass_and_is_left_as_it_was(enabled):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        with pytest.raises(ZeroDivisionError), attending(text_rows(0, 2, CPU)):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise ZeroDivisionError
        assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def attention(device, dtype, rows, keys, heads=16, shared_by=8):
    """(`tree_attention`, the same over repeated keys in float32, bytes it took on a GPU at most, bytes of the keys)."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, count, length, 64, dtype=dtype, device=device, generator=generator)
        for count, length in ((heads, rows), (heads // shared_by, keys), (heads // shared_by, keys))
    )
    with attending(text_rows(keys - rows, rows, device)):
        mask = tree_mask(1, rows, keys, everything, dtype, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours, _ = tree_attention(torch.nn.Identity(), query, key, value, mask)
    taken = torch.cuda.max_memory_allocated() - before
    repeated = (tensor.float().repeat_interleave(shared_by, dim=1) for tensor in (key, value))
    scores = query.float() @ next(repeated).transpose(2, 3) * 64**-0.5 + mask.float()
    expected = (scores.softmax(-1) @ next(repeated)).transpose(1, 2)
    return ours.float(), expected, taken, key.nbytes


def test_heads_that_share_keys_each_attend_to_them():
    ours, expected, _, _ = attention(CPU, torch.float32, rows=3, keys=21)
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_memory_efficient_kernel_takes_shared_keys_without_a_copy(rows, dtype):
    """PyTorch raises where only another kernel could do it."""
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 has no fused attention here")
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):
        ours, expected, taken, key_bytes = attention(torch.device("cuda"), dtype, rows, keys=8195)
    assert (ours - expected).abs().max() < 2e-2
    assert taken < key_bytes
