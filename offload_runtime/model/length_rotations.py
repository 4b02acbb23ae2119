"""Rotations that change with the length of the text: dynamic NTK scaling and LongRoPE (arXiv 2402.13753).

transformers chooses them anew in every pass, by its furthest position. A pass over a tree has rows of several texts, so
every row gets the rotations of the text that ends with it, as if it were decoded alone; rows of the prompt, which
transformers reads at once, get those of the whole prompt.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_RESTARTING = {"phi3", "phimoe"}  # whose `prepare_inputs_for_generation` drops the cache at the border
_ALWAYS = 2**62


class TextLengths:
    """By what lengths the rows of a model's passes are rotated.

    border: the longest text whose rotations do not depend on its length. most: the length from which on they no longer
    change. restarts: once a text crosses the border the model reads it all again, as its own generation does.
    """

    def __init__(self, border: int, most: int, restarts: bool):
        self._border, self._most, self._restarts = border, most, restarts
        self._prompt = 0
        self.vary = False  # within the pass under way

    @classmethod
    def of(cls, model: PreTrainedModel) -> "TextLengths":
        """Of a model of transformers, whose rotary modules are wrapped where they depend on the length."""
        found = [(name, module) for name, module in model.named_modules() if _borders(module)]
        borders = [border for _, module in found for border in _borders(module)]
        is_dynamic = any("dynamic" in kind for _, module in found for kind in _kinds(module).values())
        restarts = bool(borders) and model.config.model_type in _RESTARTING
        lengths = cls(min(borders, default=_ALWAYS), _ALWAYS if is_dynamic else max(borders, default=0) + 1, restarts)
        for name, module in found:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._modules[leaf] = LengthRotations(module, lengths)
        return lengths

    def begin(self, prompt: int) -> bool:
        """Turn to a text that begins with a prompt of so many tokens. Whether rows of the text before stay right."""
        before, self._prompt = self._prompt, prompt
        return self._clamped(before) == self._clamped(prompt)

    def must_restart(self, text: int) -> bool:
        """Whether a text that has grown to so many tokens is to be read again; it then counts as the prompt."""
        if not self._restarts or not self._prompt <= self._border < text:
            return False
        self._prompt = text
        return True

    def room(self, text: int) -> int:
        """How many tokens a pass behind a text of so many may add before the model has to restart."""
        return self._border + 1 - text if self._restarts and text <= self._border else _ALWAYS

    def begin_pass(self, end: int) -> None:
        """The next pass has no position from `end` on."""
        self.vary = max(self._prompt, end) > self._border

    def of_rows(self, positions: Tensor) -> Tensor:
        """Int64 [n], of the text that each row at `positions` is rotated for."""
        return (positions + 1).clamp(min=self._clamped(self._prompt)).clamp(max=self._most)

    def is_long(self, length: int) -> bool:
        return length > self._border

    def _clamped(self, length: int) -> int:
        return min(max(length, self._border), self._most)


class LengthRotations(nn.Module):
    """A rotary module of transformers, run once for every length among the rows of a pass."""

    def __init__(self, inner: nn.Module, lengths: TextLengths):
        super().__init__()
        self.inner, self._lengths = inner, lengths

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As of `inner`: a tensor or several, ``[1, n, ...]``, for position_ids ``[..., 1, n]``."""
        if not self._lengths.vary:
            return self.inner(x, position_ids, *args, **kwargs)
        lengths = self._lengths.of_rows(position_ids.reshape(-1, position_ids.shape[-1])[0])
        order, parts = [], []
        for length in lengths.unique().tolist():  # rising, as `inner` expects; the host waits for the device
            rows = (lengths == length).nonzero()[:, 0]
            positions = position_ids[..., rows]
            if self._lengths.is_long(length):  # a last row tells `inner`
                last = positions.new_full((*positions.shape[:-1], 1), length - 1)
                positions = torch.cat((positions, last), dim=-1)
            parts.append(_first(self.inner(x, positions, *args, **kwargs), len(rows)))
            order.append(rows)
        self.inner(x, torch.zeros_like(position_ids[..., :1]), *args, **kwargs)  # forgets that it was long
        return _in_order(parts, torch.cat(order).argsort())


def _first(rotations: Any, count: int) -> Any:
    if isinstance(rotations, Tensor):
        return rotations[:, :count]
    return tuple(part[:, :count] for part in rotations)


def _in_order(parts: list[Any], places: Tensor) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=1)[:, places]
    return tuple(torch.cat(tensors, dim=1)[:, places] for tensors in zip(*parts))


def _kinds(module: nn.Module) -> dict[str | None, str]:
    """How a rotary module scales, by layer type where these differ; of other modules nothing."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        return {None: kinds}
    return kinds if isinstance(kinds, dict) else {}


def _borders(module: nn.Module) -> list[int]:
    """The longest texts up to which its rotations are the same, of those that change with the length."""
    rotary: Any = module
    borders: list[int] = []
    for layer_type, kind in _kinds(module).items():
        if kind == "longrope":
            parameters = rotary.config.rope_parameters
            stated = parameters if layer_type is None else parameters[layer_type]
            borders.append(stated["original_max_position_embeddings"])
        elif "dynamic" in kind:
            borders.append(rotary.original_max_seq_len)
    return borders
