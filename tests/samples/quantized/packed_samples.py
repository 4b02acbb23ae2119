"""Writers of packed checkpoints, from the published layouts, value by value where the runtime uses tricks.

Each takes a weight [N, K] and gives the tensors that stand for it on disk, by what follows the module's name, and the
weight that they decode to. Nothing here is shared with the code under test, but what writes weights without loss.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loaders.lossless.bins import KINDS, Bins
from loaders.lossless.encode import encode

Packed = tuple[dict[str, Tensor], Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


def pack_words(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Unsigned numbers [..., n] to int32 [..., n * bits / 32]; field i of a word holds its number order[i]."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    fields = numbers.to(torch.int64).unflatten(-1, (-1, per_word))
    words = sum(fields[..., number] << (bits * field) for field, number in enumerate(order))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def grid(weight: Tensor, bits: int, group: int, symmetric: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers 0 … 2^bits - 1 [N, K], scales [N, K/group] and zero points of that shape."""
    grouped, top = weight.unflatten(1, (-1, group)), (1 << bits) - 1
    if symmetric:
        scale = 2 * grouped.abs().amax(-1).clamp(min=1e-4) / top
        zero = torch.full_like(scale, 1 << (bits - 1))
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=1e-4)
        scale = (high - low) / top
        zero = (-low / scale).round()
    numbers = ((grouped / scale[..., None]).round() + zero[..., None]).clamp(0, top)
    return numbers.flatten(1).to(torch.int64), scale, zero.to(torch.int64)


def awq(weight: Tensor, group: int = 32) -> Packed:
    numbers, scale, zero = grid(weight, 4, group)
    scale = scale.half()
    decoded = ((numbers.unflatten(1, (-1, group)) - zero[..., None]).half() * scale[..., None]).flatten(1)
    return {
        "qweight": pack_words(numbers.T, 4, AWQ_ORDER),
        "qzeros": pack_words(zero.T, 4, AWQ_ORDER),
        "scales": scale.T.contiguous(),
    }, decoded


def gptq(
    weight: Tensor, bits: int = 4, group: int | None = 32, order: str = "natural", less_one: bool = True
) -> Packed:
    """order: "none" stores no g_idx, "natural" one that says nothing, "activations" a mixed one."""
    inputs = weight.shape[1]
    group = group or inputs
    permutation = torch.randperm(inputs) if order == "activations" else torch.arange(inputs)
    numbers, scale, zero = grid(weight[:, permutation], bits, group)
    zero, scale = zero.clamp(min=1), scale.half()
    values = ((numbers.unflatten(1, (-1, group)) - zero[..., None]).half() * scale[..., None]).flatten(1)
    natural = torch.argsort(permutation)
    tensors = {
        "qweight": pack_words(numbers[:, natural], bits).T.contiguous(),
        "qzeros": pack_words(zero.T - int(less_one), bits),
        "scales": scale.T.contiguous(),
    }
    if order != "none":
        tensors["g_idx"] = (natural // group).to(torch.int32)
    return tensors, values[:, natural]


def words(
    weight: Tensor,
    bits: int = 4,
    group: int | None = 32,
    symmetric: bool = True,
    mixed: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Packed:
    """compressed-tensors, pack-quantized; no group: one scale for each row."""
    outputs, inputs = weight.shape
    group = group or inputs
    permutation = torch.randperm(inputs) if mixed else torch.arange(inputs)
    numbers, scale, zero = grid(weight[:, permutation], bits, group, symmetric)
    scale = scale.to(dtype)
    values = ((numbers.unflatten(1, (-1, group)) - zero[..., None]).to(dtype) * scale[..., None]).flatten(1)
    natural = torch.argsort(permutation)
    tensors = {
        "weight_packed": pack_words(numbers[:, natural], bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_words(zero.T, bits).T.contiguous()
    if mixed:
        tensors["weight_g_idx"] = (natural // group).to(torch.int32)
    return tensors, values[:, natural]


def int8(weight: Tensor, group: int | None = None, symmetric: bool = True) -> Packed:
    """compressed-tensors, int-quantized."""
    group = group or weight.shape[1]
    numbers, scale, zero = grid(weight, 8, group, symmetric)
    scale = scale.to(torch.bfloat16)
    tensors = {"weight": (numbers - 128).to(torch.int8), "weight_scale": scale}
    if not symmetric:
        tensors["weight_zero_point"] = (zero - 128).to(torch.int8)
    decoded = (numbers.unflatten(1, (-1, group)) - zero[..., None]).to(torch.bfloat16) * scale[..., None]
    return tensors, decoded.flatten(1)


def fp8(weight: Tensor, block: tuple[int, int], dtype: torch.dtype, name: str = "weight_scale") -> Packed:
    """float8_e4m3 with a scale for each block, the last ones of which may be cut off."""
    rows, columns = block
    outputs, inputs = weight.shape
    scale = torch.empty(-(-outputs // rows), -(-inputs // columns))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            scale[i, j] = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].abs().max() / 448
    scale = scale.clamp(min=1e-6).to(dtype)
    spread = scale.repeat_interleave(rows, 0)[:outputs].repeat_interleave(columns, 1)[:, :inputs]
    stored = (weight / spread.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": stored, name: scale}, stored.to(dtype) * spread


def bitsandbytes_int8(weight: Tensor) -> Packed:
    scale = weight.abs().amax(1)
    stored = (weight * (127 / scale[:, None])).round().to(torch.int8)
    tensors = {"weight": stored, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, stored * scale[:, None] * 7.874015718698502e-3


def nf4(weight: Tensor, block: int = 64, nested: int = 0, dtype: str = "bfloat16") -> Packed:
    """bitsandbytes; `nested` blocks of absmax are packed in turn."""
    flat = weight.reshape(-1, block)
    absmax = flat.abs().amax(1)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": dtype, "shape": list(weight.shape)}
    tensors = {"weight.quant_map": NF4}
    if nested:
        code, offset = torch.linspace(-1, 1, 256) ** 3, absmax.mean().item()
        apart = absmax - offset
        tops = torch.stack([part.abs().max() for part in apart.split(nested)])
        spread = tops.repeat_interleave(nested)[: len(absmax)]
        index = ((apart / spread)[:, None] - code).abs().argmin(1)
        tensors |= {"weight.absmax": index.to(torch.uint8), "weight.nested_absmax": tops}
        tensors["weight.nested_quant_map"] = code
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": offset}
        absmax = code[index] * spread + offset
    else:
        tensors["weight.absmax"] = absmax
    codes = ((flat / absmax[:, None])[..., None] - NF4).abs().argmin(-1)
    decoded = (NF4[codes] * absmax[:, None]).view(weight.shape).to(getattr(torch, dtype))
    codes = codes.view(-1, 2)
    tensors["weight"] = (codes[:, :1] << 4 | codes[:, 1:]).to(torch.uint8)
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors, decoded


def mxfp4(weight: Tensor) -> Packed:
    """Of fused experts [E, K, N] as gpt-oss has them."""
    blocks = weight.mT.unflatten(-1, (-1, 32))  # [E, N, K/32, 32]
    exponent = (blocks.abs().amax(-1).clamp(min=1e-6) / 6).log2().ceil()
    codes = ((blocks / exponent.exp2()[..., None])[..., None] - FP4).abs().argmin(-1)
    decoded = (FP4[codes] * exponent.exp2()[..., None]).flatten(-2).mT
    pairs = codes.unflatten(-1, (-1, 2))
    stored = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
    return {"_blocks": stored, "_scales": (exponent + 127).to(torch.uint8)}, decoded


def lossless(weight: Tensor, bits: int = 4, dtype: torch.dtype = torch.bfloat16) -> Packed:
    """With weights among the others that are zero or have no code."""
    weight = weight.to(dtype)
    weight.view(-1)[:8] = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 500.0, -500.0, 1e-3, 0.0])
    encoded = encode(weight, Bins(KINDS["BF16" if dtype == torch.bfloat16 else "F16"], bits))
    return {f"weight.{role}": tensor for role, tensor in vars(encoded).items()}, weight


def _fp4_codes(values: Tensor) -> Tensor:
    """The nearest e2m1 of each value, and two of them a byte, the first one low: uint8 [..., n / 2]."""
    codes = (values[..., None] - FP4).abs().argmin(-1).unflatten(-1, (-1, 2))
    return (codes[..., 0] | codes[..., 1] << 4).to(torch.uint8)


def _fp4_decoded(stored: Tensor, scale: Tensor, group: int) -> Tensor:
    codes = torch.stack([stored & 15, stored >> 4], -1).flatten(-2).long()
    return (FP4[codes].unflatten(-1, (-1, group)) * scale[..., None]).flatten(-2)


def nvfp4(weight: Tensor, modelopt: bool = False) -> Packed:
    """Scales are float8 less a global one, by which compressed-tensors divides and ModelOpt multiplies."""
    largest = weight.abs().unflatten(1, (-1, 16)).amax(-1).clamp(min=1e-4)
    overall = (largest.max() / (448 * 6)).float()
    scale = (largest / 6 / overall).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    real = scale.float() * overall if modelopt else scale.float() / (1 / overall)
    stored = _fp4_codes(weight / real.repeat_interleave(16, 1))
    decoded = _fp4_decoded(stored, real, 16)
    if modelopt:
        return {
            "weight": stored,
            "weight_scale": scale,
            "weight_scale_2": overall,
            "input_scale": overall.clone(),
        }, decoded
    tensors = {"weight_packed": stored, "weight_scale": scale, "weight_global_scale": (1 / overall)[None]}
    return tensors | {"input_global_scale": torch.ones(1)}, decoded.to(torch.bfloat16)


def mx(weight: Tensor, bits: int, modelopt: bool = False) -> Packed:
    """MXFP4 and MXFP8 of matrices, with exponents of two for scales of 32 values."""
    largest = weight.abs().unflatten(1, (-1, 32)).amax(-1).clamp(min=1e-4)
    exponent = (largest / (6 if bits == 4 else 448)).log2().ceil()
    scaled = weight / exponent.exp2().repeat_interleave(32, 1)
    stored = _fp4_codes(scaled) if bits == 4 else scaled.to(torch.float8_e4m3fn)
    decoded = (
        _fp4_decoded(stored, exponent.exp2(), 32)
        if bits == 4
        else stored.float() * exponent.exp2().repeat_interleave(32, 1)
    )
    leaf = "weight_packed" if bits == 4 and not modelopt else "weight"
    return {leaf: stored, "weight_scale": (exponent + 127).to(torch.uint8)}, decoded


def fp8_or_fp4(weight: Tensor, block: int = 8) -> Packed:
    """DeepSeek-V4: FP8 in square blocks; MXFP4 in int8 for matrices that take more than they give, as some experts'.

    Scales are powers of two, under another name.
    """
    outputs, inputs = weight.shape
    if (outputs, inputs) == (16, 32):
        parts, decoded = mx(weight, bits=4)
        stored, exponent = parts["weight_packed"].view(torch.int8), parts["weight_scale"]
        return {"weight": stored, "scale": exponent.view(torch.float8_e8m0fnu)}, decoded
    largest = weight.abs().unflatten(1, (-1, block)).unflatten(0, (-1, block)).amax((1, 3)).clamp(min=1e-4)
    scale = (largest / 448).log2().ceil().exp2()
    spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
    stored = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": stored, "scale": scale.to(torch.float8_e8m0fnu)}, stored.float() * spread


def nvfp4_experts(weight: Tensor) -> Packed:
    """Of fused experts [E, K, N], as ModelOpt stores Llama 4's: transposed back after it has packed along K."""
    overall = (weight.abs().max() / (448 * 6)).float()
    largest = weight.abs().mT.unflatten(-1, (-1, 16)).amax(-1).clamp(min=1e-4)  # [E, N, K/16]
    scale = (largest / 6 / overall).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    real = scale.float() * overall
    stored = _fp4_codes(weight.mT / real.repeat_interleave(16, -1))
    decoded = _fp4_decoded(stored, real, 16).mT
    parts = {"": stored.mT, "_weight_scale": scale.view(torch.uint8).mT.contiguous().view(torch.float8_e4m3fn)}
    return parts | {"_weight_scale_2": overall, "_input_scale": overall.clone()}, decoded


def rewrite(
    source: Path, target: Path, is_packed: Callable[[str], bool], pack: Callable[[Tensor], Packed], config: Any
):
    """Copy a model in one file with the weights that `is_packed` chooses packed; `config` is its quantization_config.

    Beside it, under "decoded", the same model with those weights as they decode, in float32.
    """
    decoded_directory = target / "decoded"
    shutil.copytree(source, target)
    shutil.copytree(source, decoded_directory)
    tensors = load_file(source / "model.safetensors")
    stored, decoded = {}, dict(tensors)
    torch.manual_seed(0)
    for name, tensor in tensors.items():
        if not is_packed(name):
            stored[name] = tensor
            continue
        parts, decoded[name] = pack(tensor.float())
        decoded[name] = decoded[name].float().contiguous()
        for leaf, part in parts.items():
            joint = "." if leaf and not leaf.startswith("_") else ""
            stored[name.removesuffix(".weight") + joint + leaf] = part.contiguous().clone()
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    save_file(decoded, decoded_directory / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | {"quantization_config": config}))
    return target


def is_linear(name: str) -> bool:
    """The matrices of decoder layers, without routers."""
    return ".layers." in name and name.endswith("proj.weight")
