"""Compiles every fused kernel for one compute capability, 80 for 8.0, and prints the names: run as a script."""

import sys
from typing import Any

import torch
from torch import Tensor
from triton import compile as compile_kernel
from triton import runtime
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loaders.dequantize import triton_floats, triton_ggml, triton_integers
from loaders.dequantize.kernels import decode_fused
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS
from tests.samples.packed_weights import WEIGHTS, packed_weight

POINTERS = {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
}


class Compiled:
    """In place of a kernel: a launch compiles it for what it is handed."""

    def __init__(self, kernel: runtime.JITFunction, target: GPUTarget):
        self._kernel, self._target = kernel, target

    def __getitem__(self, grid: object) -> Any:
        def launch(*positional: Any, **named: Any) -> None:
            values = {**dict(zip(self._kernel.arg_names, positional)), **named}
            signature, constants = {}, {}
            for parameter in self._kernel.params:
                value = values[parameter.name]
                signature[parameter.name] = kind = "constexpr" if parameter.is_constexpr else _kind(value)
                if kind == "constexpr":
                    constants[parameter.name] = value
            compile_kernel(ASTSource(self._kernel, signature, constants), target=self._target)
            print(self._kernel.__name__)

        return launch


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def main(capability: int) -> None:
    """Raises what triton raises of a kernel that does not compile."""
    target = GPUTarget("cuda", capability, 32)
    for module in (triton_floats, triton_ggml, triton_integers):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, runtime.JITFunction) and kernel.arg_names[-1] == "BLOCK_COLUMNS":
                setattr(module, name, Compiled(kernel, target))
    for case in WEIGHTS:
        scheme, stored, shape, _ = packed_weight(case)
        decode_fused(scheme, stored, torch.empty(shape, dtype=torch.bfloat16))
    for kind, (values, nbytes) in BLOCKS.items():
        blocks = torch.zeros(4, 2 * nbytes, dtype=torch.uint8)
        decode_fused(Ggml(kind, paired_heads=1, less=1.0), {"blocks": blocks}, torch.empty(4, 2 * values))
    scheme, stored, shape, _ = packed_weight("awq")  # of experts, those that are chosen
    stacked = {role: torch.stack([tensor] * 2) for role, tensor in stored.items()}
    decode_fused(scheme, stacked, torch.empty(2, *shape), torch.ones(2, dtype=torch.uint8))


if __name__ == "__main__":
    main(int(sys.argv[1]))
