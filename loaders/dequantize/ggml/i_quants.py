"""Dequantizes ggml's kinds whose codes stand for entries of a codebook: bytes [n, of a block] → float32 [n, values].

IQ2 and IQ3: a code stands for 8 or 4 magnitudes, whose signs are stored apart, as 8 bits or as 7 whose parity is the
eighth. IQ1: for 8 of -1, 0 and 1, and an eighth is added to or subtracted from all. IQ4 and MXFP4: for one value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loaders.dequantize.ggml.codebooks import tables_of
from loaders.dequantize.ggml.unpack import SUB, fields, floats, nibbles, words_of

ONES = 0x0101010101010101
DELTA = 0.125
SIGN_SHIFTS = (0, 7, 14, 21)  # of 4 groups' signs in a word, above which is the scale
NIBBLES = (0, 4)


def iq1_s(stored: Tensor) -> Tensor:
    """Dequantize IQ1_S: a word for 32 values holds high bits of 4 codes, the scale, and the sign of the eighth."""
    high = words_of(stored[:, 34:], torch.int16)
    codes = stored[:, 2:34].to(torch.int32) | fields(high, (0, 3, 6, 9), 7) << 8
    scale = floats(stored[:, :2]) * (2 * (high >> 12 & 7) + 1)
    delta = DELTA - 2 * DELTA * (high >> 15)
    values = _entries("IQ1_S", codes).view(torch.int8).to(torch.float32).view(-1, 8, SUB)
    return values.add_(delta[..., None]).mul_(scale[..., None])


def iq1_m(stored: Tensor) -> Tensor:
    """Dequantize IQ1_M: the 4 bits at the top of each of 4 words of scales are the float16 factor of all."""
    words = words_of(stored[:, 48:], torch.int16)
    first, second, third, fourth = (words >> 12).unbind(1)
    factor = (first | second << 4 | third << 8 | fourth << 12).to(torch.int16).view(torch.float16)
    scale = factor[:, None].to(torch.float32) * (2 * fields(words, (0, 3, 6, 9), 7) + 1)  # of 16 values
    high = fields(stored[:, 32:48].to(torch.int32), NIBBLES, 15)
    codes = stored[:, :32].to(torch.int32) | (high & 7) << 8
    delta = DELTA - 2 * DELTA * (high >> 3)
    values = _entries("IQ1_M", codes).view(torch.int8).to(torch.float32).view(-1, 32, 8).add_(delta[..., None])
    return values.view(-1, 16, 16).mul_(scale[..., None])


def iq2_xxs(stored: Tensor) -> Tensor:
    parts = stored[:, 2:].reshape(-1, 8, 8)  # 4 codes, and a word of signs and scale
    words = words_of(parts[..., 4:].flatten(1))
    scale = _half_scales(floats(stored[:, :2]), words >> 28 & 15, 0.25)
    return _signed("IQ2_XXS", parts[..., :4].flatten(1), fields(words, SIGN_SHIFTS, 127), scale, by_parity=True)


def iq2_xs(stored: Tensor) -> Tensor:
    words = words_of(stored[:, 2:66], torch.int16)
    scale = _half_scales(floats(stored[:, :2]), fields(stored[:, 66:].to(torch.int32), NIBBLES, 15), 0.25)
    return _signed("IQ2_XS", words & 511, words >> 9, scale, by_parity=True)


def iq2_s(stored: Tensor) -> Tensor:
    scale = _half_scales(floats(stored[:, :2]), fields(stored[:, 74:].to(torch.int32), NIBBLES, 15), 0.25)
    high = fields(stored[:, 66:74].to(torch.int32), (0, 2, 4, 6), 3)
    codes = stored[:, 2:34].to(torch.int32) | high << 8
    return _signed("IQ2_S", codes, stored[:, 34:66], scale)


def iq3_xxs(stored: Tensor) -> Tensor:
    words = words_of(stored[:, 66:])
    scale = _half_scales(floats(stored[:, :2]), words >> 28 & 15, 0.5)
    return _signed("IQ3_XXS", stored[:, 2:66], fields(words, SIGN_SHIFTS, 127), scale, by_parity=True)


def iq3_s(stored: Tensor) -> Tensor:
    scale = floats(stored[:, :2]) * (1 + 2 * fields(stored[:, 106:].to(torch.int32), NIBBLES, 15))
    high = fields(stored[:, 66:74].to(torch.int32), range(8), 1)
    return _signed("IQ3_S", stored[:, 2:66].to(torch.int32) | high << 8, stored[:, 74:106], scale)


def iq4_nl(stored: Tensor) -> Tensor:
    return _in_halves("IQ4_NL", stored[:, 2:]).mul_(floats(stored[:, :2]))


def iq4_xs(stored: Tensor) -> Tensor:
    """Dequantize IQ4_XS: 8 parts, whose 6-bit scales are in a word of high bits and 4 bytes of low ones."""
    high = fields(words_of(stored[:, 2:4], torch.int16), range(0, 16, 2), 3)
    scale = (fields(stored[:, 4:8].to(torch.int32), NIBBLES, 15) | high << 4) - 32
    scales = floats(stored[:, :2]) * scale
    return _in_halves("IQ4_XS", stored[:, 8:].reshape(-1, 16)).view(-1, 8, SUB).mul_(scales[..., None])


def mxfp4(stored: Tensor) -> Tensor:
    """Dequantize MXFP4: twice the 4-bit floats, times half the power of two that the first byte says."""
    exponent = stored[:, :1].to(torch.int32)
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return _in_halves("MXFP4", stored[:, 1:]).mul_(bits.view(torch.float32))


def _entries(kind: str, codes: Tensor) -> Tensor:
    """The codebook's entries of codes [n, k], of any integer dtype: int64 [n, 8 k / width], a value in each byte."""
    entries = tables_of(kind, codes.device).entries
    return entries.index_select(0, codes.reshape(-1).to(torch.int32)).view(len(codes), -1).view(torch.int64)


def _half_scales(factor: Tensor, scales: Tensor, part: float) -> Tensor:
    return (scales + 0.5).mul_(factor).mul_(part)


def _signed(kind: str, codes: Tensor, signs: Tensor, scale: Tensor, by_parity: bool = False) -> Tensor:
    """Magnitudes of the codebook with signs, times the scale of each part [n, parts].

    signs: integers [n, groups of 8 values], with 8 bits, or 7 and their parity.
    """
    tables, words = tables_of(kind, codes.device), _entries(kind, codes)
    masks = (tables.parity_signs if by_parity else tables.signs).index_select(0, signs.reshape(-1).to(torch.int32))
    masks = masks.view(words.shape)
    words ^= masks
    words += masks & ONES  # the complement and 1 more; no magnitude is 0, so no byte overflows
    values = words.view(torch.int8).to(torch.float32).view(len(scale), scale.shape[1], -1)
    return values.mul_(scale[..., None])


def _in_halves(kind: str, stored: Tensor) -> Tensor:
    """Bytes [n, 16] of two 4-bit codes → the values of the low ones, then those of the high ones: float32 [n, 32].

    Looked up two neighbours at a time, which takes three quarters of the time of one.
    """
    codes = nibbles(stored, 16).view(torch.int16).view(-1)
    codes = (codes | codes >> 4) & 0xFF
    pairs = tables_of(kind, stored.device).pairs
    return pairs.index_select(0, codes.to(torch.int32)).view(torch.float32).view(-1, SUB)
