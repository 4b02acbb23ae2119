"""Finds the layer where NaN or infinity first appears, by an extra pass once the logits are not finite."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from offload_runtime.errors import Interrupted
from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_rows
from sequoia_tree.uploads import upload

_TOKENS = 16  # at the end of the text, read by the extra pass


@torch.inference_mode()
def describe_fault(model: Model, text: Sequence[int], sequence: int = 0) -> str:
    """Describes the first layer that holds or computes NaN or infinity. Empties a sequence of the model's cache."""
    cached = model.cache.sequences[sequence]
    cached.truncate(0)
    tokens = upload([min(token, model.vocab_size - 1) for token in text[-_TOKENS:]], model.device)
    try:
        with model.unpadded(), _watched(model) as faults:
            logits = model.forward(tokens, text_rows(0, len(tokens), model.device, cached.first_row), 1)
            if not _finite(logits):
                faults.append("the final norm or the head gives NaN or infinity")
    except Interrupted:
        return "looking for the layer was interrupted"
    finally:
        cached.rollback()
    return faults[0] if faults else "not in a pass over the end of the text alone"


@contextmanager
def _watched(model: Model) -> Iterator[list[str]]:
    """Yields a list that collects, within the block, the faults found in the layers of a pass, in order."""
    faults: list[str] = []
    hooks = []
    for number, layer in enumerate(model.layer_modules):
        weights: list[str] = []
        hooks.append(layer.register_forward_pre_hook(_look_at_weights(faults, number, weights)))
        hooks.append(layer.register_forward_hook(_check_output(faults, number, weights)))
    try:
        yield faults
    finally:
        for hook in hooks:
            hook.remove()


def _look_at_weights(faults: list[str], number: int, weights: list[str]) -> Callable[[nn.Module, Any], None]:
    """Before the layer runs: which of its weights are not finite. Experts that are not routed may hold garbage."""

    def look(layer: nn.Module, args: Any) -> None:
        if faults:
            return
        if args and isinstance(args[0], Tensor) and not _finite(args[0]):
            faults.append(f"what enters layer {number} is NaN or infinity; look at the embeddings")
        weights.extend(name for name, weight in layer.named_parameters() if not _finite(weight))

    return look


def _check_output(faults: list[str], number: int, weights: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def check(layer: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not faults and not _finite(hidden):
            held = f", and holds some in {weights[0]}" if weights else ""
            faults.append(f"layer {number} is the first to give NaN or infinity{held}")

    return check


def _finite(values: Tensor) -> bool:
    """Whether all values are finite; True for quantized weights, which are not checked."""
    known = values.dtype in (torch.float16, torch.bfloat16, torch.float32) and not values.is_meta
    return bool(values.isfinite().all()) if known else True
