"""The tokens before each node of a tree, as tensors: the text, shared by all nodes, then the node's own path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sequoia_tree.tree import Ints
from sequoia_tree.uploads import upload

_NONE = -1  # in place of a token where there is none


@dataclass(frozen=True, eq=False)
class Text:
    """A text on the device. tokens: int64 [L]; distinct: int64 [U], each of its tokens once.

    array: `tokens` on the host.
    """

    tokens: Tensor
    distinct: Tensor
    array: Ints

    @classmethod
    def of(cls, tokens: Sequence[int], device: torch.device) -> Text:
        """A text of at least one token, the last of which is the root of trees."""
        array = np.asarray(tokens, dtype=np.int64)
        return cls(upload(array, device), upload(np.unique(array), device), array)

    def at(self, ancestors: Tensor, tokens: Tensor, depth: int) -> Contexts:
        """The contexts after n nodes of a tree whose m nodes hold `tokens`, int64 [m].

        ancestors: bool [n, m], the nodes on each path, the node among them; column 0 is the root, and parents come
        before their children. depth: of the deepest of the n nodes, or more.
        """
        on_path = ancestors[:, 1:]
        places = torch.where(on_path, on_path.cumsum(-1) - 1, depth)
        paths = tokens.new_full((len(ancestors), depth + 1), _NONE)
        paths.scatter_(1, places, tokens[1:].expand(len(ancestors), -1))
        return Contexts(self, paths[:, :depth], on_path.sum(-1))

    def at_root(self) -> Contexts:
        """The context after the text itself."""
        return Contexts(self, self.tokens.new_empty(1, 0), self.tokens.new_zeros(1))


@dataclass(frozen=True, eq=False)
class Contexts:
    """n contexts: `text` followed by the first depths[i] tokens of paths[i].

    paths: int64 [n, D], -1 after the end of each. depths: int64 [n].
    """

    text: Text
    paths: Tensor
    depths: Tensor

    def __getitem__(self, nodes: Tensor) -> Contexts:
        """Those of some nodes, int64 [m]."""
        return Contexts(self.text, self.paths[nodes], self.depths[nodes])

    @property
    def lengths(self) -> Tensor:
        """Tokens of each context, int64 [n]."""
        return self.depths + len(self.text.tokens)

    @property
    def range(self) -> tuple[int, int]:
        """(least, most) tokens of a context, known without waiting for the device."""
        length = len(self.text.tokens)
        return length, length + self.paths.shape[1]

    @property
    def seen(self) -> Tensor:
        """Every token that occurs in a context, int64 [n, U + D], possibly repeated; -1 for none."""
        return torch.cat((self.text.distinct.expand(len(self.paths), -1), self.paths), dim=1)

    def paths_on_host(self) -> list[tuple[int, ...]]:
        """The tokens after the text, of each context; waits for the device. Tokens that are missing are -1."""
        depths, *columns = torch.cat((self.depths[None], self.paths.T)).tolist()
        paths = zip(*columns) if columns else ((),) * len(depths)
        return [tuple(path[:depth]) for path, depth in zip(paths, depths)]

    def since(self, begin: int) -> Tensor:
        """All tokens from position `begin` of the text on, int64 [n, L - begin + D]; -1 behind the end of each."""
        return torch.cat((self.text.tokens[max(begin, 0) :].expand(len(self.paths), -1), self.paths), dim=1)

    def last(self, count: int) -> Tensor:
        """The last `count` tokens of each context, int64 [n, count]; -1 before its beginning."""
        length, depth = len(self.text.tokens), self.paths.shape[1]
        kept = min(count, length)
        recent = torch.nn.functional.pad(self.since(length - kept), (count - kept, 0), value=_NONE)
        offsets = torch.arange(count, device=recent.device)
        return recent.gather(1, self.depths[:, None] + offsets) if depth else recent


def spare_column(tokens: Tensor, vocab_size: int) -> Tensor:
    """`tokens` with `vocab_size` in place of those outside the vocabulary: a column to write to and to drop."""
    return tokens.masked_fill((tokens < 0) | (tokens >= vocab_size), vocab_size)
