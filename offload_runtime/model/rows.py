"""The rows of a pass: plain text, or the end of the text followed by a tree."""

import torch
from torch import Tensor

from offload_runtime.model.attention import PassRows


def text_rows(past: int, count: int, device: torch.device) -> PassRows:
    """`count` rows of text after `past` cached rows; each sees itself and all rows before it."""
    positions = torch.arange(past, past + count, device=device)
    return PassRows(past, positions, torch.ones(count, count, dtype=torch.bool, device=device).tril_())


def text_and_tree_rows(past: int, count: int, ancestors: Tensor, depths: Tensor) -> PassRows:
    """`count` rows of text, the last being the root of a tree, followed by the tree's other nodes.

    ancestors: bool [n, n], row i marks node i and its ancestors. depths: int64 [n]. Returns count + n - 1 rows.
    """
    before_root, nodes = count - 1, len(depths)
    if not before_root:
        return PassRows(past, past + depths, ancestors)
    rows = before_root + nodes
    visible = torch.zeros(rows, rows, dtype=torch.bool, device=depths.device)
    visible[:before_root, :before_root] = torch.ones_like(visible[:before_root, :before_root]).tril_()
    visible[before_root:, :before_root] = True
    visible[before_root:, before_root:] = ancestors
    text_positions = torch.arange(past, past + before_root, device=depths.device)
    return PassRows(past, torch.cat((text_positions, past + before_root + depths)), visible)
