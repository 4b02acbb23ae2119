"""Trees that are grown per context: the nodes of highest priority, found in expansion steps of one shape.

A node's priority is the product, along its path, of the estimated chance of each step before its token was drawn. The
tree is the n nodes of highest priority, which a heap would take one by one. Priorities only fall along paths and from
sibling to sibling, so that tree does not depend on the order of expansion. Each expansion step therefore expands many
nodes at once: the draft runs over all of them together, the host decides nothing, and all steps have the same shape.

Exact under ratio tests: a priority depends on tokens already drawn and on the distributions there, never on its own
token; and whether a node is kept depends on higher priorities only, of which none belongs to a node below it. That
holds for end tokens too, which are never expanded: what is expanded in their place has lower priorities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NONE = -torch.inf
# Added per child number, so that no two slots of a path or of one parent are equal; priorities are float64 for it.
_TIE = 1e-9


@dataclass(frozen=True)
class Grown:
    """The best nodes of a frontier, on the host; index 0 is the root.

    parents, tokens: as of a tree. expanded: the number under which the frontier expanded each node, -1 for leaves.
    """

    parents: list[int]
    tokens: list[int]
    expanded: list[int]


class Frontier:
    """The open slots of a tree being drafted: one for each possible child of an expanded node.

    expansions, width: the number of expansion steps, and of nodes that each expands. children: most children of a node.
    All state is on `device` and reused from tree to tree. Expanded nodes are numbered in order, the root is 0; those of
    the current expansion step are `begin` to `end`. If too few slots are open, a step is filled up with nodes that have
    no token (-1), no priority, and no children.

    depths, tokens: int64 [expanded]. ancestors: bool [expanded, expanded], a node being its own.
    """

    def __init__(self, expansions: int, width: int, children: int, device: torch.device):
        self.width, self.children = width, children
        capacity = 1 + expansions * width
        self.tokens, self.depths, self._slot_of = torch.zeros(3, capacity, dtype=torch.int64, device=device)
        self._own = torch.eye(capacity, dtype=torch.bool, device=device)
        self.ancestors = torch.zeros_like(self._own)
        self._no_token = torch.full((), -1, device=device)
        self._numbers = torch.arange(capacity, device=device)
        self._priorities = torch.empty(capacity, dtype=torch.float64, device=device)  # logarithms, as in `_slots`
        self._slots = torch.empty(capacity, children, dtype=torch.float64, device=device)
        self._closed = torch.ones(capacity, children, dtype=torch.bool, device=device)  # expanded, or never to be
        self._offers = torch.zeros(capacity, children, dtype=torch.int64, device=device)
        self._ties = torch.arange(1, children + 1, dtype=torch.float64, device=device) * _TIE

    def restart(self, root_token: int, ending: Tensor) -> None:
        """Begin a tree: the root is the first node to expand. ending: bool [vocab + 1], `Endings.table`."""
        self.begin, self.end, self._root_token, self._ending = 0, 1, root_token, ending
        self.tokens[:1].fill_(root_token)  # assigning to an element would have the host wait for a GPU
        self.depths[:1].fill_(0)
        self.ancestors[0] = self._own[0]
        self._priorities[:1].fill_(0.0)
        self._slots.fill_(_NONE)

    def open(self, tokens: Tensor, costs: Tensor) -> None:
        """Offer children of the current step's nodes: tokens int64 [r, children] in drawing order, -1 for none.

        costs [r, children]: how much lower each child's log-priority is than its parent's, at least 0, rising in a row.
        """
        expansion = slice(self.begin, self.end)
        self._offers[expansion] = tokens
        slots = torch.sub(self._priorities[expansion, None], costs, out=self._slots[expansion])
        # Where tokens end does not depend on their values: the distribution has no further token.
        slots.sub_(self._ties).masked_fill_(tokens < 0, _NONE)
        torch.take(self._ending, tokens, out=self._closed[expansion])

    def expand(self) -> None:
        """Turn the best open slots into the nodes of the next expansion step."""
        expansion = slice(self.end, self.end + self.width)
        slots = self._slots.masked_fill(self._closed, _NONE).view(-1)
        priorities, chosen = self._priorities[expansion], self._slot_of[expansion]
        torch.topk(slots, self.width, sorted=False, out=(priorities, chosen))
        self._closed.view(-1).index_fill_(0, chosen, True)
        torch.where(priorities > _NONE, self._offers.view(-1)[chosen], self._no_token, out=self.tokens[expansion])
        parents = (chosen // self.children).clamp_(max=self.end - 1)  # of nodes without a token, any
        torch.add(self.depths[parents], 1, out=self.depths[expansion])
        torch.logical_or(self.ancestors[parents], self._own[expansion], out=self.ancestors[expansion])
        self.begin, self.end = expansion.start, expansion.stop

    def best(self, count: int) -> Grown:
        """The root and the `count` nodes of highest priority below it, expanded or not; fewer where there are no more.

        Siblings are in drawing order. Waits for the device once.
        """
        slots, taken = self._slots.view(-1), self._taken()
        none = len(slots)
        priorities, chosen = slots.topk(min(count, none), sorted=False)
        # In the order of (parent's expanded number, child number), parents come before their children.
        chosen = chosen.masked_fill(priorities == _NONE, none).sort().values
        places = chosen.clamp(max=none - 1)
        parents = torch.searchsorted(chosen, self._slot_of[places // self.children]) + 1
        parents.masked_fill_(places < self.children, 0)
        table = torch.stack((parents, self._offers.view(-1)[places], taken[places], chosen)).cpu()
        kept = table[:3, table[3] < none].tolist()
        roots = (-1, self._root_token, 0)
        parents_, tokens_, expanded_ = ([root, *rest] for root, rest in zip(roots, kept))
        return Grown(parents_, tokens_, expanded_)

    def _taken(self) -> Tensor:
        """Per slot, the number of its expanded node; -1 for none."""
        nodes = slice(1, self.end)
        # Nodes without a token may share a slot with one that has one: the larger value is its.
        numbers = torch.where(self._priorities[nodes] > _NONE, self._numbers[nodes], -1)
        return torch.full_like(self._offers, -1).view(-1).scatter_reduce_(0, self._slot_of[nodes], numbers, "amax")
