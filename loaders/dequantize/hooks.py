"""Dequantizes parameters just before their module runs, into scratch memory that all modules share in turn.

It reads the quantized bytes once and writes the result once, on the compute stream, hence after earlier uses of the
scratch memory. The host never waits for the GPU, so passes can be captured in a graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loaders.checkpoint.spec import aligned
from loaders.dequantize.stacks import decode_stack, prepare
from loaders.modules.experts import choice_among, position_of_choice
from loaders.modules.quantized import Packed
from loaders.modules.skeleton import DecodedParameter


@dataclass(frozen=True, eq=False)
class _Target:
    """A parameter of a module: its quantized form, its view of the scratch memory, and the tensor the module uses."""

    leaf: str
    packed: Packed
    out: Tensor
    parameter: nn.Parameter


def scratch_bytes(parameters: Iterable[DecodedParameter]) -> int:
    """Bytes that `decode_before_use` needs: the dequantized parameters of the largest module."""
    owners = _by_module(parameters).values()
    return max((sum(aligned(parameter.nbytes) for _, parameter in owned) for owned in owners), default=0)


def decode_before_use(parameters: Iterable[DecodedParameter], scratch: Tensor) -> list[RemovableHandle]:
    """Register hooks that dequantize every module's parameters into `scratch` (uint8, on the device)."""
    handles: list[RemovableHandle] = []
    for module, owned in _by_module(parameters).items():
        targets, begin = [], 0
        for leaf, parameter in owned:
            prepare(parameter.packed.scheme, scratch.device)
            memory = scratch[begin : begin + parameter.nbytes].view(parameter.dtype)
            view = parameter.packed.view(memory)
            targets.append(_Target(leaf, parameter.packed, view, nn.Parameter(view, requires_grad=False)))
            begin += aligned(parameter.nbytes)
        handles.append(module.register_forward_pre_hook(_decode(targets, module), with_kwargs=True))
        handles.append(module.register_forward_hook(_forget(targets, module)))
    return handles


def _by_module(parameters: Iterable[DecodedParameter]) -> dict[nn.Module, list[tuple[str, DecodedParameter]]]:
    owners: dict[nn.Module, list[tuple[str, DecodedParameter]]] = defaultdict(list)
    for parameter in parameters:
        for module, leaf in parameter.holders:
            owners[module].append((leaf, parameter))
    return owners


def _decode(targets: list[_Target], module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
    at = position_of_choice(module)

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        chosen = choice_among(args, kwargs, at)
        for target in targets:
            decode_stack(target.packed, target.out, chosen if target.packed.experts else None)
            module._parameters[target.leaf] = target.parameter

    return hook


def _forget(targets: list[_Target], module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
    """Unbind the parameters: the scratch memory is reused, so a later read must fail rather than be wrong."""
    absent = [(target.leaf, module._parameters[target.leaf]) for target in targets]

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for leaf, meta in absent:
            module._parameters[leaf] = meta

    return hook
