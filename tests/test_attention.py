"""What attention asks of PyTorch's kernels on a GPU, as far as a CPU can tell."""

import pytest
import torch

from offload_runtime.attention import MASK_ALIGNMENT, attending, tree_mask
from offload_runtime.rows import text_rows

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
