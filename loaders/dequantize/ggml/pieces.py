"""Dequantizes a weight from several tensors in ggml's blocks, each into its own rows of the result."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from loaders.dequantize.ggml.plain import ggml
from loaders.formats.schemes import Pieces
from loaders.gguf.placement import RowOrder


def pieces(scheme: Pieces, operands: Mapping[str, Tensor], out: Tensor) -> None:
    """`out` [N, K], [K, N] if `input_major`, [N] or [N, 1, K], with experts before that; any strides."""
    for piece in scheme.pieces:
        ggml(piece.scheme, {"blocks": operands[piece.role]}, placed(scheme, piece.placement, out))


def placed(scheme: Pieces, placement: RowOrder, out: Tensor) -> Tensor:
    """The rows of `out` that a piece belongs to, [..., rows, columns], in the order in which they are stored."""
    dimensions = out.dim() - scheme.by_expert
    rows = out.unsqueeze(-1) if dimensions == 1 else out.flatten(-2) if dimensions == 3 else out
    rows = rows.mT if scheme.input_major else rows
    if placement.heads:
        rows = rows.unflatten(-2, (placement.heads, -1))
    rows = rows[..., placement.begin : placement.end : placement.step, :]
    if placement.tiles:
        rows = rows.unflatten(-2, (placement.groups, placement.tiles, -1)).transpose(-4, -3)
    return rows.mT if placement.turned else rows
