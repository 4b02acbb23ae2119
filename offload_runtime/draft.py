"""The draft: a resident model that grows a tree of continuations, level by level."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from offload_runtime.attention import PassRows
from offload_runtime.model import Model
from offload_runtime.repetition import SeenTokens
from sequoia_tree.sampling import Sampling, draw_without_replacement, log_law, penalised
from sequoia_tree.tree import Tree


@dataclass(frozen=True)
class DrawnTree:
    """A tree with a token at every node.

    tree: without the nodes for which the draft law had no token left.
    tokens: one per node; the root's is the last token of the text.
    source_nodes: the nodes' numbers in the tree that was asked for.
    laws: log-probabilities [vocab] by source node, wherever children were drawn.
    """

    tree: Tree
    tokens: list[int]
    source_nodes: list[int]
    laws: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def root_only(cls, token: int) -> "DrawnTree":
        """The tree of plain decoding."""
        return cls(Tree([-1]), [token], [0])

    def draft_law(self, node: int) -> Tensor:
        """Log-probabilities ``[vocab]`` from which the children of `node` were drawn."""
        return self.laws[self.source_nodes[node]]

    def paths(self, device: torch.device) -> Tensor:
        """Token ids ``[n, depth]`` on the way from the root to each node, filled up with the root's token."""
        rows = [[self.tokens[i] for i in self.tree.path(node)] for node in range(self.tree.size)]
        filled = [[*row, *[self.tokens[0]] * (self.tree.depth - len(row))] for row in rows]
        return torch.tensor(filled, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Level:
    """The nodes of one depth that have children, and where the drawn tokens go. All tensors int64 but `visible`.

    nodes, parents [p]: those nodes. paths [p, depth]: the nodes on the way from the root to each, root left out.
    visible [p, columns]: which of the tree's rows in the cache each parent sees; those of its own level come last.
    depths [columns]: the depths of those rows.
    children, child_rows, child_numbers [c]: child node, its parent's index in `parents`, its rank among its siblings
    (from 0).
    """

    nodes: tuple[int, ...]
    parents: Tensor
    paths: Tensor
    visible: Tensor
    depths: Tensor
    children: Tensor
    child_rows: Tensor
    child_numbers: Tensor
    width: int


def tree_levels(tree: Tree, device: torch.device) -> tuple[list[Level], dict[int, int]]:
    """The levels to draw, from the root down, and the cache column of each node that has children (but the root)."""
    parents_by_depth = [[node for node in level if tree.children[node]] for level in tree.levels]
    columns: list[int] = []
    ancestors = torch.from_numpy(tree.ancestor_mask())
    levels = []
    for depth, parents in enumerate(parents_by_depth):
        if not parents:
            break
        if depth > 0:
            columns += parents
        edges = [(child, row, i) for row, node in enumerate(parents) for i, child in enumerate(tree.children[node])]
        children, rows, numbers = torch.tensor(edges, device=device).unbind(1)
        levels.append(
            Level(
                nodes=tuple(parents),
                parents=torch.tensor(parents, device=device),
                paths=torch.tensor([tree.path(node) for node in parents], dtype=torch.int64, device=device),
                visible=ancestors[parents][:, columns].to(device),
                depths=torch.tensor([tree.depths[node] for node in columns], dtype=torch.int64, device=device),
                children=children,
                child_rows=rows,
                child_numbers=numbers,
                width=max(len(tree.children[node]) for node in parents),
            )
        )
    return levels, {node: column for column, node in enumerate(columns)}


class Draft:
    """Grows the tree it was given under any text.

    vocab_size: of the target; laws have this size, whatever padding the draft's own vocabulary has.
    most_rows: most rows of one draft pass while it reads text.
    """

    def __init__(self, model: Model, tree: Tree, vocab_size: int, most_rows: int):
        self.model, self.tree = model, tree
        self._vocab_size, self._most_rows = vocab_size, most_rows
        self._levels, self._columns = tree_levels(tree, model.device)

    @torch.inference_mode()
    def grow(self, text: Sequence[int], sampling: Sampling, generator: torch.Generator) -> DrawnTree:
        """Draw a token for every node of the tree, the root being the last token of `text`."""
        seen = SeenTokens(text, self.model.device) if sampling.repetition_penalty != 1 else None
        tokens = torch.full((self.tree.size,), text[-1], device=self.model.device)
        logits = self._read(text)
        laws: dict[int, Tensor] = {}
        for depth, level in enumerate(self._levels):
            if depth > 0:
                logits = self._forward(level, tokens)
            seen_here = seen.at(tokens[level.paths].clamp(min=0)) if seen else None
            drawn = self._draw(level, logits, seen_here, sampling, laws, generator)
            drawn = drawn.masked_fill(tokens[level.parents, None] < 0, -1)  # no parent, no children
            tokens[level.children] = drawn[level.child_rows, level.child_numbers]
        return self._without_missing(tokens.tolist(), laws)

    def commit(self, path: Sequence[int]) -> None:
        """Keep the cache rows of the accepted nodes, as numbered in `self.tree`, as far as they were computed."""
        self.model.cache.commit([self._columns[node] for node in path if node in self._columns])

    def _read(self, text: Sequence[int]) -> Tensor:
        """Bring the cache up to the end of `text`; logits ``[1, vocab]`` after it."""
        cache = self.model.cache
        cache.truncate(len(text) - 1)
        known = [min(token, self.model.vocab_size - 1) for token in text[cache.length :]]
        return self._fit(self.model.read(known, self._most_rows))

    def _forward(self, level: Level, tokens: Tensor) -> Tensor:
        inputs = tokens[level.parents].clamp(0, self.model.vocab_size - 1)
        past = self.model.cache.length
        rows = PassRows(past, past - 1 + level.depths, level.visible)
        return self._fit(self.model.forward(inputs, rows, logits_to_keep=len(inputs)))

    def _fit(self, logits: Tensor) -> Tensor:
        """Cut or pad ``[n, draft vocab]`` to the target's vocabulary; a padded token is never drawn."""
        surplus = self._vocab_size - logits.shape[1]
        return F.pad(logits, (0, surplus), value=-torch.inf) if surplus > 0 else logits[:, : self._vocab_size]

    def _draw(
        self,
        level: Level,
        logits: Tensor,
        seen: Tensor | None,
        sampling: Sampling,
        laws: dict[int, Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """Distinct tokens ``[parents, width]`` in drawing order, -1 where a law ran out; adds the laws to `laws`."""
        if sampling.temperature == 0:
            best = penalised(logits, sampling, seen).topk(min(level.width, logits.shape[1])).indices
            return F.pad(best, (0, level.width - best.shape[1]), value=-1)
        law = log_law(logits, sampling, seen)
        laws.update(zip(level.nodes, law))
        return draw_without_replacement(law, level.width, generator)

    def _without_missing(self, tokens: list[int], laws: dict[int, Tensor]) -> DrawnTree:
        alive = [token >= 0 for token in tokens]
        if all(alive):
            return DrawnTree(self.tree, tokens, list(range(self.tree.size)), laws)
        tree, kept = self.tree.prune(alive)
        return DrawnTree(tree, [tokens[node] for node in kept], kept, laws)
