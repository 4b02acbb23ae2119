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

Check = Callable[[list[Packed], Tensor | None], None]
Owned = tuple[nn.Module, str, DecodedParameter]  # the module that holds a parameter, and its name there


@dataclass(frozen=True, eq=False)
class _Target:
    """A parameter of a module: its quantized form, its view of the scratch memory, and the tensor the module uses."""

    holder: nn.Module
    leaf: str
    packed: Packed
    out: Tensor
    parameter: nn.Parameter


def scratch_bytes(parameters: Iterable[DecodedParameter]) -> int:
    """Bytes that `decode_before_use` needs: the dequantized parameters of the largest module and of those around it."""
    owners = _by_user(parameters)
    begins = _begins(owners)
    return max((begins[user] + _nbytes(owned) for user, owned in owners.items()), default=0)


def decode_before_use(
    parameters: Iterable[DecodedParameter],
    scratch: Tensor,
    unless: Callable[[], bool] = bool,
    check: Check = lambda weights, chosen: None,
) -> list[RemovableHandle]:
    """Register hooks that dequantize every module's parameters into `scratch` (uint8, on the device).

    unless: where it says so, other weights are bound already, and nothing is dequantized. check: called with what is
    dequantized next, and the experts that are routed.
    """
    handles: list[RemovableHandle] = []
    owners = _by_user(parameters)
    begins = _begins(owners)
    for module, owned in owners.items():
        targets, begin = [], begins[module]
        for holder, leaf, parameter in owned:
            prepare(parameter.packed.scheme, scratch.device)
            memory = scratch[begin : begin + parameter.nbytes].view(parameter.dtype)
            view = parameter.packed.view(memory)
            targets.append(_Target(holder, leaf, parameter.packed, view, nn.Parameter(view, requires_grad=False)))
            begin += aligned(parameter.nbytes)
        handles.append(module.register_forward_pre_hook(_decode(targets, module, unless, check), with_kwargs=True))
        handles.append(module.register_forward_hook(_forget(targets)))
    return handles


def _by_user(parameters: Iterable[DecodedParameter]) -> dict[nn.Module, list[Owned]]:
    owners: dict[nn.Module, list[Owned]] = defaultdict(list)
    for parameter in parameters:
        users = parameter.users or (module for module, _ in parameter.holders)
        for user, (holder, leaf) in zip(users, parameter.holders):
            owners[user].append((holder, leaf, parameter))
    return owners


def _begins(owners: dict[nn.Module, list[Owned]]) -> dict[nn.Module, int]:
    """Where each module's part of the scratch memory begins: behind those of the modules that call it meanwhile."""
    begins = dict.fromkeys(owners, 0)
    for outer, owned in owners.items():
        for inner in outer.modules():
            if inner is not outer and inner in begins:
                begins[inner] += _nbytes(owned)
    return begins


def _nbytes(owned: list[Owned]) -> int:
    return sum(aligned(parameter.nbytes) for _, _, parameter in owned)


def _decode(
    targets: list[_Target], module: nn.Module, unless: Callable[[], bool], check: Check
) -> Callable[[nn.Module, Any, Any], None]:
    at, weights = position_of_choice(module), [target.packed for target in targets]

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if unless():
            return
        chosen = choice_among(args, kwargs, at)
        check(weights, chosen)
        for target in targets:
            decode_stack(target.packed, target.out, chosen if target.packed.experts else None)
            target.holder._parameters[target.leaf] = target.parameter

    return hook


def _forget(targets: list[_Target]) -> Callable[[nn.Module, Any, Any], None]:
    """Unbind the parameters: the scratch memory is reused, so a later read must fail rather than be wrong."""
    absent = [(target.holder, target.leaf, target.holder._parameters[target.leaf]) for target in targets]

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for holder, leaf, meta in absent:
            holder._parameters[leaf] = meta

    return hook
