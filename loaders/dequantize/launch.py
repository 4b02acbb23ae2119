"""Shared parts of the kernels and their launches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = {"BLOCK_ROWS": 8, "BLOCK_COLUMNS": 256}
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """Round float32 to the precision of DTYPE, still in float32.

    bfloat16 is rounded on the bits: Triton's interpreter would truncate.
    """
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = (bits & -65536).to(tl.float32, bitcast=True)
    elif DTYPE == tl.float16:  # noqa: SIM300
        value = value.to(tl.float16).to(tl.float32)
    return value


@triton.jit
def block_of(BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, rows, columns):
    """Rows and columns of the matrix that this program dequantizes, and a mask of those inside it."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    return row, column, (row < rows) & (column < columns)


@triton.jit
def at(out_at, matrix, row, column, together, out_expert, out_matrix, out_row, out_column):
    """Pointers to the values of a matrix."""
    begin = matrix // together * out_expert + matrix % together * out_matrix
    return out_at + begin + row * out_row + column * out_column


@triton.jit
def store(place, value, inside, KEPT: tl.constexpr):
    """Round to the format's dtype, and store in the output's."""
    value = rounded(rounded(value, KEPT), place.dtype.element_ty)
    tl.store(place, value.to(place.dtype.element_ty), inside)


@dataclass(frozen=True)
class MatrixStack:
    """Matrices [rows, columns] of one tensor: `count` in all; each expert has `together` of them."""

    tensor: Tensor
    count: int
    together: int
    rows: int
    columns: int
    strides: tuple[int, int, int, int]  # between experts, matrices of one, rows and columns, in values
    routed: Tensor | None = None  # uint8, one for each expert; matrices of experts with 0 are skipped

    @classmethod
    def of(cls, out: Tensor, routed: Tensor | None) -> MatrixStack:
        """out [rows, columns], [experts, rows, columns], or [experts, matrices of each, rows, columns]."""
        stack = out if out.dim() == 4 else out[:, None] if out.dim() == 3 else out[None, None]
        experts, together, rows, columns = stack.shape
        expert, matrix, row, column = stack.stride()
        return cls(out, experts * together, together, rows, columns, (expert, matrix, row, column), routed)

    @property
    def per_hit(self) -> int:
        """Matrices for each element of `routed`; 0 to dequantize all."""
        return 0 if self.routed is None else self.count // len(self.routed)

    @property
    def turned(self) -> MatrixStack:
        """The same, transposed."""
        expert, matrix, row, column = self.strides
        return replace(self, rows=self.columns, columns=self.rows, strides=(expert, matrix, column, row))

    @property
    def place(self) -> tuple[int, int, int, int, int]:
        """The arguments of `at` in the kernels."""
        return (self.together, *self.strides)


def grid(matrix: MatrixStack) -> tuple[int, int, int]:
    """The launch grid: blocks of rows, blocks of columns, matrices."""
    rows, columns = BLOCK["BLOCK_ROWS"], BLOCK["BLOCK_COLUMNS"]
    return triton.cdiv(matrix.rows, rows), triton.cdiv(matrix.columns, columns), matrix.count


def member_size(tensor: Tensor | None, count: int) -> int:
    """Values of an operand per matrix, of which there are `count`."""
    return 0 if tensor is None else tensor.numel() // count


def no_tensor(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """The tensor, or instead of None a dummy whose pointer the kernel does not follow."""
    return stand_in if tensor is None else tensor
