"""The tensors of the wide model, one at a time.

Weights that produce a number the small model lacks are random, and those that would consume it are zero; columns that
only ever meet zeros are random too. So no tensor is empty, and nothing but the small model reaches the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.checkpoint.random_weights import RandomValues
from loaders.safetensors_files.writer import TensorEntry
from widening.placement import Placement

LAYERS = "model.layers."
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # what adds to the residual stream


@dataclass(frozen=True)
class WideWeights:
    """Makes tensors by their names in the wide model.

    small: every tensor of the small model, an untied head included. kinds: for each layer that is stored, the small
    layer it holds; None for one without effect.
    """

    placement: Placement
    small: Mapping[str, Tensor]
    kinds: tuple[int | None, ...]
    dtype: torch.dtype
    random: RandomValues

    def values(self, entry: TensorEntry) -> Iterable[Tensor]:
        """The tensor's parts, as the checkpoint writer takes them."""
        if not entry.name.startswith(LAYERS):
            return [self._embeddings_and_head(entry)]
        number, _, name = entry.name.removeprefix(LAYERS).partition(".")
        kind = self.kinds[int(number)]
        if kind is not None:
            return [self._active(entry, name, self.small[f"{LAYERS}{kind}.{name}"])]
        if name in WRITERS:
            return [torch.zeros(entry.shape, dtype=self.dtype)]
        return [torch.ones(entry.shape, dtype=self.dtype)] if name in NORMS else self.random.pieces(entry.count)

    def _embeddings_and_head(self, entry: TensorEntry) -> Tensor:
        small = self.small[entry.name]
        if entry.name == "model.norm.weight":
            return self._norm(entry, small)
        if entry.name == "lm_head.weight":
            return self._reader(entry, torch.arange(len(small)), small)
        assert entry.name == "model.embed_tokens.weight", entry.name
        wide = torch.zeros(entry.shape, dtype=self.dtype)
        wide[:, : self._used] = small.to(self.dtype).repeat(1, self.placement.copies)
        return wide

    def _active(self, entry: TensorEntry, name: str, small: Tensor) -> Tensor:
        """A tensor of a layer with effect."""
        place = self.placement
        if name in NORMS:
            return self._norm(entry, small)
        if name == "self_attn.q_proj.weight":
            return self._queries(entry, small)
        if name in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
            return self._reader(entry, place.wide_rows(place.kv_heads), small[place.small_rows(place.kv_heads)])
        if name == "self_attn.o_proj.weight":
            return self._writer(entry, place.wide_rows(place.heads), small[:, place.small_rows(place.heads)])
        if name == "mlp.down_proj.weight":
            return self._writer(entry, torch.arange(small.shape[1]), small)
        assert name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"), name
        return self._reader(entry, torch.arange(len(small)), small)

    @property
    def _used(self) -> int:
        """Numbers of the residual stream that are ever other than zero; they come first."""
        return self.placement.copies * self.placement.small.hidden

    def _norm(self, entry: TensorEntry, small: Tensor) -> Tensor:
        wide = torch.ones(entry.shape, dtype=self.dtype)
        scaled = small.double() * self.placement.norm_scale
        wide[: self._used] = scaled.to(self.dtype).repeat(self.placement.copies)
        return wide

    def _reader(self, entry: TensorEntry, rows: Tensor, small: Tensor) -> Tensor:
        """A matrix that reads the first copy; rows ``[n]`` hold `small` ``[n, hidden]``, the others are random."""
        wide = self._random(entry)
        wide[rows, : self._used] = 0
        wide[rows, : small.shape[1]] = small.to(self.dtype)
        return wide

    def _queries(self, entry: TensorEntry, small: Tensor) -> Tensor:
        """As a reader, scaled; the dimensions that a small head has not are zero, for those of the keys are random."""
        place = self.placement
        wide = self._random(entry)
        for head, _ in place.heads:
            wide[head * place.wide.head_dim : (head + 1) * place.wide.head_dim, : self._used] = 0
        rows, hidden = place.wide_rows(place.heads), place.small.hidden
        scaled = small[place.small_rows(place.heads)].double() * place.query_scale
        wide[rows, :hidden] = scaled.to(self.dtype)
        if place.copies > 1:
            wide[rows, hidden : 2 * hidden] = (scaled - scaled.to(self.dtype).double()).to(self.dtype)
        return wide

    def _writer(self, entry: TensorEntry, columns: Tensor, small: Tensor) -> Tensor:
        """A matrix that adds to every copy what its columns ``[n]`` give; `small` is ``[hidden, n]``."""
        wide = torch.zeros(entry.shape, dtype=self.dtype)
        hidden = self.placement.small.hidden
        for copy in range(self.placement.copies):
            wide[copy * hidden : (copy + 1) * hidden, columns] = small.to(self.dtype)
        return wide

    def _random(self, entry: TensorEntry) -> Tensor:
        wide = torch.empty(entry.count, dtype=self.dtype)
        end = 0
        for piece in self.random.pieces(entry.count):
            wide[end : end + len(piece)] = piece
            end += len(piece)
        return wide.view(entry.shape)
