"""Quantization schemes: a small record each, with all that dequantizing needs besides the tensors.

N outputs, K inputs; a dequantized weight is [N, K] unless said otherwise. Words are int32, with the first value in the
lowest bits. A value is dequantized in the dtype of its scale, as in the formats' own libraries, and then cast.

`input_major`: dequantized transposed. `by_rows`: a weight has one stored tensor, each row of which is a row of the
weight, so some rows can be read and dequantized alone: embeddings and heads are, once, when they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loaders.gguf.placement import RowOrder


class _OfMatrix:
    """What holds for the weights of most schemes."""

    input_major: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False


@dataclass(frozen=True)
class Awq(_OfMatrix):
    """qweight [K, N/8] words, qzeros [K/group, N/8] words, scales [K/group, N]; W = (q - z) * scale.

    The nibbles of a word belong to outputs 0, 2, 4, 6, 1, 3, 5, 7.
    """

    input_major: ClassVar[bool] = True
    group_size: int


@dataclass(frozen=True)
class Gptq(_OfMatrix):
    """qweight [K*bits/32, N] words, qzeros [K/group, N*bits/32] words, scales [K/group, N]; W = (q - z) * scale.

    `zeros_less_one`: zero points are stored minus one (the format's first version). `ordered`: input k belongs to group
    k / group_size; else to group g_idx[k].
    """

    input_major: ClassVar[bool] = True
    bits: int
    group_size: int
    zeros_less_one: bool
    ordered: bool


@dataclass(frozen=True)
class Words(_OfMatrix):
    """weight_packed [N, K*bits/32] words, weight_scale [N, K/group], maybe weight_zero_point [N*bits/32, K/group].

    Values and zero points are stored plus 2^(bits-1). With a weight_g_idx, input k belongs to group weight_g_idx[k].
    """

    bits: int
    group_size: int
    ordered: bool


@dataclass(frozen=True)
class Scaled(_OfMatrix):
    """weight [N, K] int8 or float8, scale [ceil(N/rows), ceil(K/columns)], maybe zero_point of that shape, int8.

    W = (q - z) * scale * factor, rounded to the dtype of the scale unless `in_float32`. A scale may be a power of two,
    stored as its exponent plus 127 (uint8): its dtype is bfloat16.
    """

    rows: int
    columns: int
    in_float32: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class Fp4:
    """weight uint8 [N, K/2], e2m1, low nibble first; weight_scale [N, K/group], float8 or exponents of two plus 127.

    global_scale: float32, one for the weight, which scales are multiplied by, or divided by where it `divides`;
    exponents have none. W = value * scale in float32, rounded to bfloat16 unless `in_float32`.
    `by_column`: fused experts that are stored transposed: weight [E, K/2, N], weight_scale [E, K/group, N], and
    dequantized [E, K, N]. `input_major`: gpt-oss' experts are dequantized to this as well, from weight
    [E, N, K/32, 16] and weight_scale [E, N, K/32].
    """

    by_rows: ClassVar[bool] = False
    group_size: int
    divides: bool = False
    in_float32: bool = False
    by_column: bool = False
    input_major: bool = False


@dataclass(frozen=True)
class Codebook(_OfMatrix):
    """weight uint8, two codes a byte, high one first; quant_map [16]; absmax, one per `block` values.

    `nested_block`: absmax is quantized itself: uint8 indices into nested_quant_map [256], times nested_absmax per block
    of those, plus `nested_offset`. Values are rounded to `dtype` ("float16", ...).
    """

    block: int
    dtype: str
    nested_block: int = 0
    nested_offset: float = 0.0


@dataclass(frozen=True)
class Ggml(_OfMatrix):
    """blocks uint8 [..., N, bytes of a row] of ggml's type `kind` ("Q4_K"), or float values of any shape.

    `paired_heads`: the number of heads whose rows are stored in the order 0, n, 1, n + 1, … where n is half of them.
    `less` is subtracted from every value. `negated_log`: a value is then the logarithm of the negative. `tiles`: the
    columns are of heads in so many tiles, each with one head of every one of `groups`; in the weight, the heads of a
    group are together.
    """

    by_rows: ClassVar[bool] = True
    kind: str
    paired_heads: int = 0
    less: float = 0.0
    negated_log: bool = False
    tiles: int = 0
    groups: int = 0


@dataclass(frozen=True)
class Lossless(_OfMatrix):
    """The fields of `loaders.lossless.encode.Encoded`, with codes of `bits` bits, for weights of the 16-bit `dtype`.

    `top` is [N, K / 32]; the others have one dimension.
    """

    bits: int
    dtype: str


@dataclass(frozen=True)
class Piece:
    """Part of a weight: the blocks under the role `role`, which `scheme` dequantizes, and where their rows belong."""

    role: str
    scheme: Ggml
    placement: RowOrder


@dataclass(frozen=True)
class Pieces:
    """A weight made of several tensors in ggml's blocks, or of one in another order: W [N, K], a vector, or [N, 1, K].

    `by_expert`: each of these has a first dimension for the experts, and so have all blocks.
    """

    by_rows: ClassVar[bool] = False
    pieces: tuple[Piece, ...]
    by_expert: bool = False
    input_major: bool = False


Scheme = Awq | Gptq | Words | Scaled | Fp4 | Codebook | Ggml | Lossless | Pieces
