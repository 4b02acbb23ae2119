"""Compiles the fused kernels for GPUs that are not here and prints which for which: run as a script.

    python -m tests.fakes.compiled_kernels [--all] 75 80 86    # compute capabilities, 80 for 8.0

Every kernel for every capability, and every variant (dtypes and switches) for one of them, in turn, in small blocks,
which compile in half the time: what a GPU lacks it lacks in any block. --all: every variant for each, as launched.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from triton import compile as compile_kernel
from triton import runtime
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loaders.dequantize import triton_floats, triton_ggml, triton_integers
from loaders.dequantize.kernels import decode_fused
from loaders.dequantize.launch import BLOCK
from loaders.dequantize.lossless import kernels as lossless
from loaders.dequantize.lossless import product_kernel
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS
from loaders.lossless.bins import KINDS, Bins
from tests.samples.quantized.packed_weights import WEIGHTS, packed_weight

POINTERS = {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
}


LAUNCHED = (
    "BLOCK_COLUMNS",
    "WEIGHTS",
    "WORDS",
)  # the last arguments of kernels that are launched, not called by others
Variant = tuple[runtime.JITFunction, dict[str, str], dict[str, Any]]
"""A kernel, the types of its arguments, and the values of those that are constants."""


class Recorded:
    """In place of a kernel: a launch adds what it would compile to `variants`, by what tells it from others."""

    def __init__(self, kernel: runtime.JITFunction, variants: dict[str, Variant]):
        self._kernel, self._variants = kernel, variants

    def __getitem__(self, grid: object) -> Any:
        def launch(*positional: Any, **named: Any) -> None:
            values = {**dict(zip(self._kernel.arg_names, positional)), **named}
            signature, constants = {}, {}
            for parameter in self._kernel.params:
                value = values[parameter.name]
                signature[parameter.name] = kind = "constexpr" if parameter.is_constexpr else _kind(value)
                if kind == "constexpr":
                    constants[parameter.name] = value
            variant = (self._kernel, signature, constants)
            self._variants.setdefault(f"{_name(self._kernel)} {signature} {constants}", variant)

        return launch


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _name(kernel: runtime.JITFunction) -> str:
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.__name__}"


def variants() -> dict[str, list[Variant]]:
    """What all formats launch, by kernel."""
    found: dict[str, Variant] = {}
    for module in (lossless, product_kernel, triton_floats, triton_ggml, triton_integers):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, runtime.JITFunction) and kernel.arg_names[-1] in LAUNCHED:
                setattr(module, name, Recorded(kernel, found))
    for case in WEIGHTS:
        scheme, stored, shape, _ = packed_weight(case)
        decode_fused(scheme, stored, torch.empty(shape, dtype=torch.bfloat16))
    for kind, (values, nbytes) in BLOCKS.items():
        blocks = torch.zeros(4, 2 * nbytes, dtype=torch.uint8)
        out = torch.empty(4, 2 * values, dtype=torch.bfloat16)
        decode_fused(Ggml(kind, paired_heads=1, less=1.0), {"blocks": blocks}, out)
    for bits in (3, 4, 5):
        bins, code = Bins(KINDS["BF16"], bits), torch.zeros(32 * bits, dtype=torch.uint8)
        lossless.approximate(bins, code, torch.zeros(8, dtype=torch.uint8), torch.empty(256, dtype=torch.bfloat16))
    _products()
    scheme, stored, shape, _ = packed_weight("awq")  # of experts, those that are chosen
    stacked = {role: torch.stack([tensor] * 2) for role, tensor in stored.items()}
    decode_fused(scheme, stacked, torch.empty(2, *shape, dtype=torch.float16), torch.ones(2, dtype=torch.uint8))
    by_kernel = defaultdict(list)
    for variant in found.values():
        by_kernel[_name(variant[0])].append(variant)
    return by_kernel


def _products() -> None:
    """Launch every number of bits with every number of rows, in the three dtypes."""
    top, dtypes = torch.zeros(8, dtype=torch.uint8), (torch.float16, torch.float32, torch.bfloat16)
    for turn, bits in enumerate((3, 4, 5)):
        code = torch.zeros(32 * bits, dtype=torch.uint8)
        for (rows, *_), dtype in zip(product_kernel.SHAPES, (*dtypes[turn:], *dtypes[:turn])):
            bins, bias = Bins(KINDS["F16" if dtype == torch.float16 else "BF16"], bits), torch.empty(8, dtype=dtype)
            product_kernel.multiply(bins, code, top, torch.empty(rows, 32, dtype=dtype), bias if bits == 4 else None)


def chosen(one_kernel: list[Variant], capabilities: list[int], every: bool) -> Iterator[tuple[Variant, int]]:
    """What to compile for what."""
    if every:
        return ((variant, capability) for variant in one_kernel for capability in capabilities)
    count = max(len(one_kernel), len(capabilities))
    return islice(zip(cycle(one_kernel), cycle(capabilities)), count)


def main(capabilities: list[int], every: bool = False) -> None:
    """Raises what triton raises of a kernel that does not compile."""
    if not every:
        BLOCK.update(BLOCK_ROWS=1, BLOCK_COLUMNS=128)
    for name, one_kernel in variants().items():
        for (kernel, signature, constants), capability in chosen(one_kernel, capabilities, every):
            compile_kernel(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
            print(name, capability, flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:] if argument.isdigit()], "--all" in sys.argv)
