"""Rotary embeddings that depend on the length of the text: dynamic NTK scaling and LongRoPE (arXiv 2402.13753).

transformers chooses the rotations in every pass, by its largest position. Rows of a pass over a tree belong to texts of
several lengths, so every row gets the rotations of the text that ends with it, as if it were decoded alone. Rows of the
prompt, which transformers reads at once, get those of the whole prompt.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_RESTARTING = {"phi3", "phimoe"}  # their `prepare_inputs_for_generation` drops the cache at the border
_ALWAYS = 2**62


class TextLengths:
    """The text length that each row of a pass is rotated for.

    border: the longest text whose rotations do not depend on its length. most: the length from which on they no longer
    change. restarts: when a text crosses the border, the model reads it again, as its own `generate` does.
    """

    def __init__(self, border: int, most: int, restarts: bool):
        self._border, self._most, self._restarts = border, most, restarts
        self._prompt = 0
        self.vary = False  # whether the rows of the current pass differ

    @classmethod
    def of(cls, model: PreTrainedModel) -> "TextLengths":
        """For a transformers model; wraps its rotary modules that depend on the length."""
        found = [(name, module) for name, module in model.named_modules() if _borders(module)]
        borders = [border for _, module in found for border in _borders(module)]
        is_dynamic = any("dynamic" in kind for _, module in found for kind in _kinds(module).values())
        restarts = bool(borders) and model.config.model_type in _RESTARTING
        lengths = cls(min(borders, default=_ALWAYS), _ALWAYS if is_dynamic else max(borders, default=0) + 1, restarts)
        for name, module in found:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._modules[leaf] = LengthRotations(module, lengths)
        return lengths

    def are_fixed_to(self, positions: int) -> bool:
        """Whether the rotations of texts of up to `positions` tokens do not depend on their length."""
        return positions <= self._border

    @property
    def fixed_rows(self) -> int:
        """How many leading rows of the current text are those of any text that begins like it, whatever its length."""
        return self._border if self._prompt <= self._border else 0

    def begin(self, prompt: int) -> bool:
        """Switch to a text with a prompt of `prompt` tokens; return whether rows cached for the last one stay valid."""
        before, self._prompt = self._prompt, prompt
        return self._clamped(before) == self._clamped(prompt)

    def must_restart(self, text: int) -> bool:
        """Whether a text that has grown to `text` tokens must be read again; it then counts as the prompt."""
        if not self._restarts or not self._prompt <= self._border < text:
            return False
        self._prompt = text
        return True

    def room(self, text: int) -> int:
        """How many tokens a pass may add to a text of `text` tokens before the model has to restart."""
        return self._border + 1 - text if self._restarts and text <= self._border else _ALWAYS

    def begin_pass(self, end: int) -> None:
        """All positions of the next pass are below `end`."""
        self.vary = max(self._prompt, end) > self._border

    def of_rows(self, positions: Tensor) -> Tensor:
        """int64 [n], the text length that each row at `positions` is rotated for."""
        return (positions + 1).clamp(min=self._clamped(self._prompt)).clamp(max=self._most)

    def is_long(self, length: int) -> bool:
        return length > self._border

    def _clamped(self, length: int) -> int:
        return min(max(length, self._border), self._most)


class LengthRotations(nn.Module):
    """Wraps a rotary module of transformers and runs it once for every text length in a pass."""

    def __init__(self, inner: nn.Module, lengths: TextLengths):
        super().__init__()
        self.inner, self._lengths = inner, lengths

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same result as `inner`: one or several tensors ``[1, n, ...]`` for position_ids ``[..., 1, n]``."""
        if not self._lengths.vary:
            return self.inner(x, position_ids, *args, **kwargs)
        lengths = self._lengths.of_rows(position_ids.reshape(-1, position_ids.shape[-1])[0])
        order, parts = [], []
        for length in lengths.unique().tolist():  # rising, as `inner` expects; the host waits for the device
            rows = (lengths == length).nonzero()[:, 0]
            positions = position_ids[..., rows]
            if self._lengths.is_long(length):  # an extra last position makes `inner` see the length
                last = positions.new_full((*positions.shape[:-1], 1), length - 1)
                positions = torch.cat((positions, last), dim=-1)
            parts.append(_first(self.inner(x, positions, *args, **kwargs), len(rows)))
            order.append(rows)
        self.inner(x, torch.zeros_like(position_ids[..., :1]), *args, **kwargs)  # resets `inner` to short texts
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
    """The scaling of a rotary module, by layer type where these differ; empty for other modules."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        return {None: kinds}
    return kinds if isinstance(kinds, dict) else {}


def _borders(module: nn.Module) -> list[int]:
    """The lengths up to which its rotations are fixed, for each of its scalings that depends on the length."""
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
