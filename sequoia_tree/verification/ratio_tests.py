"""The ratio tests of every child against what its earlier siblings leave, for all nodes of a tree at once.

Of a parent that arrives with weight A, let p be the target's distribution, q the draft's, both unnormalised, S the sum
of p and Q what q holds beside the tokens of earlier children. A child's chance is min(1, A p Q / (q S)). Rejecting it
leaves of the target the positive part of p - c q, with c = S / (A Q), and the weight W / (W + 1 - A) with W = A S' / S,
where S' is the sum of what is left. Weight 1 stays 1: Sequoia's rule. Three things follow that leave little to compute:

- after some children the target has max(p - C q, 0) left, where C is the sum of their c;
- weights satisfy A / (1 - A) = S / D, where D = S (1 - A) / A stays what it was before the first child;
- so c = (S + D) / Q, a chance is (p - C q) / (c q), and at the end the weight is S / (S + D).

A state is C, S and D. Sums and states are float64. A rejected token has nothing left of p, so it may stay in q.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sequoia_tree.tree import Tree
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.expansions import Expansions

_SUMMED = 1 << 17  # probabilities that a processor sums up at once: half a megabyte, near its second cache
_WIDE = 1 << 13  # a vocabulary whose rows a processor takes one by one, where they are: copies would cost more
_LARGEST = 1e37  # a factor that a float32 probability can be multiplied with


class RatioTests:
    """hand_on: whether children arrive with the weight that their parent's test gave them, as for bottom-up traversal;
    otherwise all arrive with weight 1. replacement: whether siblings were drawn with replacement.

    tokens: int64 [n], of a tree with children; the root's is not read.
    """

    def __init__(
        self, tree: Tree, tokens: Tensor, distributions: Distributions, hand_on: bool, replacement: bool = False
    ):
        self._expansions = Expansions.of(tree, hand_on, tokens.device)
        self._distributions, self._hand_on = distributions, hand_on
        self._most_rows = distributions.most_rows(tokens.device)
        self._row_by_row = not tokens.is_cuda and distributions.vocab_size >= _WIDE
        self._most_summed = self._most_rows if tokens.is_cuda else max(1, _SUMMED // distributions.vocab_size)
        at = self._expansions.at
        drawn = tokens[torch.where(at.children > 0, at.children, at.children[:, :1])]
        self._pieces, sums, of_children = self._look_at(drawn, at.children > 0, replacement)
        self._scaled_ratios, self._draft_left = of_children.flatten(1).index_select(1, at.cell)
        if self._row_by_row:
            self._scratch = sums.new_empty(distributions.vocab_size, dtype=torch.float32)
            self._double = sums.new_empty(distributions.vocab_size)
        parents_and_none = F.pad(sums, (0, 1))
        own_sums = parents_and_none[at.own_row]
        self._own_sums = torch.stack((-own_sums, own_sums))
        self._states = sums.new_zeros(len(at.opened), 3)
        self._states[:, 1] = parents_and_none[at.opened]
        self._largest = sums.new_full((), _LARGEST)
        self._chances = torch.empty_like(self._draft_left)
        for expansion in range(len(self._expansions.tests) - 1):
            self._run(expansion)
        self._chances.nan_to_num_(nan=0.0)  # 0 / 0: of a test that is never made

    @property
    def post_order(self) -> Tensor:
        """The tree's, int64 [n]."""
        return self._expansions.at.post_order

    @property
    def chances(self) -> Tensor:
        """Of every node, float64 [n]: its chance once all nodes before it are rejected; 1 for the root."""
        return F.pad(self._chances, (0, 1), value=1.0)[self._expansions.at.test]

    @property
    def weights(self) -> Tensor:
        """Of every node, float64 [n]: its chance once its children are rejected, too. With `hand_on` only."""
        at = self._expansions.at
        left, lost = self._states[at.last[at.parents], 1:].unbind(1)
        weights = torch.where(left > 0, left / (left + lost), (lost == 0).double())
        return torch.cat((self._chances, weights))[at.outcome]

    def end_of_path(self, passed: Tensor) -> Tensor:
        """Where the way down ends that from each node goes on to its first child in `passed`, bool [n]: int64 [1]."""
        at, size = self._expansions.at, len(passed)
        nodes = torch.arange(size, device=passed.device)
        following = torch.full_like(nodes, size)
        candidates = nodes.masked_fill(~passed, size)[at.child]
        following.scatter_reduce_(0, at.parent, candidates, "amin")
        following = torch.where(following < size, following, nodes)
        for _ in range(self._expansions.depth.bit_length()):
            following = following[following]
        return following[:1]

    def left(self, node: Tensor) -> Tensor:
        """What the target has left at `node`, int64 [1], all children being rejected: float32 [V], unnormalised."""
        distribution = self._distributions.target(node)[0]
        state = self._expansions.at.last[node]
        # A leaf has no row, and takes nothing from whichever it gets.
        row = (self._expansions.at.outcome[node] - len(self._chances)).clamp_(min=0)
        factor = torch.minimum(self._states[state, 0], self._largest).float()
        drafted = self._distributions.draft(self._expansions.at.parents[row])[0]
        left = distribution.addcmul(drafted, factor, value=-1).clamp_(min=0)
        return torch.where(left.sum() > 0, left, distribution)  # p equals q up to rounding: go on with p itself

    def _look_at(self, drawn: Tensor, present: Tensor, replacement: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of parents the target's distributions, float32 [R, V] in pieces of `_most_rows`, and their sums, float64 [R];
        of their children p Q / q and Q, float64 [2, R, K].
        """
        parents = self._expansions.at.parents
        target, sums, of_children = [], [], []
        for begin in range(0, len(parents), self._most_rows):
            piece = slice(begin, begin + self._most_rows)
            p, q = self._distributions.target(parents[piece]), self._distributions.draft(parents[piece])
            weights, left = _draft_left(q, drawn[piece], present[piece], replacement)
            target.append(p)
            sums.append(p.sum(-1, dtype=torch.float64))
            of_children.append(torch.stack((p.gather(1, drawn[piece]) * left / weights, left)))
        if len(target) == 1:
            return target, sums[0], of_children[0]
        pieces = target if self._row_by_row else [torch.cat(target)]
        return pieces, torch.cat(sums), torch.cat(of_children, dim=1)

    def _run(self, expansion: int) -> None:
        """Test the children of an expansion step."""
        expansions, at = self._expansions, self._expansions.at
        tests = slice(*expansions.tests[expansion : expansion + 2])
        count = tests.stop - tests.start
        begin, end = expansions.states[expansion : expansion + 2]
        before = self._states[expansions.states[expansion - 1] if expansion else 0 : begin]
        state = torch.index_select(before, 0, at.source[tests], out=self._states[begin : begin + count])
        spent, left, lost = state.unbind(1)
        draft_left = self._draft_left[tests]
        total = left + lost
        above = torch.addcmul(self._scaled_ratios[tests], spent, draft_left, value=-1)
        chances = torch.div(above, total, out=self._chances[tests]).clamp_(0, 1)
        spent.addcdiv_(total, draft_left)
        factor = torch.minimum(spent, self._largest, out=spent.new_empty(count, dtype=torch.float32))
        self._sum_up(tests, factor, left)
        if self._hand_on:
            minus, own = self._own_sums[:, tests]
            torch.addcdiv(minus, own, chances, out=self._states[begin + count : end, 2])

    def _sum_up(self, tests: slice, factor: Tensor, out: Tensor) -> None:
        """The sums of what the target has left once `factor` [tests] times the draft's distribution is taken off."""
        at, most = self._expansions.at, self._most_summed
        if self._row_by_row:
            self._sum_up_row_by_row(tests, factor, out)
            return
        for begin in range(0, len(factor), most):
            piece = slice(begin, begin + most)
            q, factors = self._distributions.draft(at.parent[tests][piece]), factor[piece, None]
            left = self._pieces[0].index_select(0, at.row[tests][piece]).addcmul_(q, factors, value=-1)
            torch.sum(left.clamp_(min=0), -1, dtype=torch.float64, out=out[piece])

    def _sum_up_row_by_row(self, tests: slice, factor: Tensor, out: Tensor) -> None:
        """The same on a processor, in memory that all rows take turns in."""
        parents, draft_row = self._expansions.at.parent[tests], self._distributions.draft_row
        for index, (row, parent) in enumerate(zip(self._expansions.rows[tests], parents.tolist())):
            piece, at = divmod(row, self._most_rows)
            q = draft_row(parent) if draft_row else self._distributions.draft(parents[index : index + 1])[0]
            left = torch.addcmul(self._pieces[piece][at], q, factor[index], value=-1, out=self._scratch)
            torch.sum(self._double.copy_(left.clamp_(min=0)), -1, out=out[index])


def _draft_left(q: Tensor, drawn: Tensor, present: Tensor, replacement: bool) -> tuple[Tensor, Tensor]:
    """Of each child drawn from the rows of q [m, V], float64 [m, K] both: its weight there, and all that is left there
    for it and the tokens after it.

    What is left is summed from what nobody drew upwards. Subtracting what was drawn from the whole would lose it as
    soon as a draft is certain to 1e-16 of a token; then an all but impossible token of the target could come out.
    """
    weights = q.gather(1, drawn).double().masked_fill_(~present, 0)
    if replacement:
        return weights, q.sum(-1, keepdim=True, dtype=torch.float64).expand_as(weights)
    undrawn = q.scatter_(1, drawn, 0).sum(-1, keepdim=True, dtype=torch.float64)
    return weights, undrawn + weights.flip(1).cumsum_(1).flip(1)
