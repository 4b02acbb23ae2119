"""Which path of a tree is accepted: rules whose text is exactly the target's.

The rules are worked out for all nodes at once and read by the host at the end: a device is waited for once or twice in
a pass, however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_tree.families import Family, families
from sequoia_tree.sampling import draw, draw_rows
from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload

# Numbers of a block of laws that is worked on at once: 16 MB of float32 stay near the processor's caches.
_BLOCK = 1 << 22
_LARGEST = 1e37  # a factor that a float32 probability can be multiplied with


@dataclass(frozen=True)
class Laws:
    """The laws that a tree is verified against, each a function of node ids, int64 [m].

    They return new float32 tensors [m, V] on the generator's device, whose rows sum to 1: `target` the law of the token
    after each node, `draft` the law from which the children of each node were drawn.
    """

    target: Callable[[Tensor], Tensor]
    draft: Callable[[Tensor], Tensor]
    vocab_size: int

    @property
    def most_rows(self) -> int:
        """Rows to ask for at once."""
        return max(1, _BLOCK // self.vocab_size)


@dataclass(frozen=True)
class Verdict:
    """What a pass yields: the tokens at the nodes of `path` (root excluded, downwards), then the token `bonus`."""

    path: list[int]
    bonus: int

    @property
    def last(self) -> int:
        """The node after which the bonus token comes."""
        return self.path[-1] if self.path else 0


Rule = Callable[[Tree, Tensor, Laws, torch.Generator], Verdict]


def verify_top_down(tree: Tree, tokens: Tensor, laws: Laws, generator: torch.Generator) -> Verdict:
    """Sequoia's rule (arXiv 2402.12374, algorithm 2): ratio tests of the children in drawing order, from the root down.

    tokens: int64 [n], node i's token; the root's is not read. The children of a node must have been drawn without
    replacement from the draft's law and none dropped; then the tokens follow the target's law exactly.
    """
    return _ratio_tests(tree, tokens, laws, generator, replacement=False)


def verify_multi_round(tree: Tree, tokens: Tensor, laws: Laws, generator: torch.Generator) -> Verdict:
    """SpecInfer's rule (arXiv 2305.09781): as `verify_top_down`, for children drawn *with* replacement."""
    return _ratio_tests(tree, tokens, laws, generator, replacement=True)


def verify_traversal(tree: Tree, tokens: Tensor, laws: Laws, generator: torch.Generator) -> Verdict:
    """Bottom-up traversal (arXiv 2505.12398), for trees as `verify_top_down` takes them; accepts more.

    A node's weight is what the ratios along its path leave of its chance; it is accepted with what its children leave
    of that, once they and all before it are rejected. Weights do not depend on what is accepted, so they are found
    level by level; the first node in post-order that passes its test is the answer.
    """
    arriving, leaving = traversal_weights(tree, tokens, laws)
    order = upload(tree.post_order, tokens.device)
    uniform = _uniform(tree.size, tokens.device, generator)
    passed = (uniform < leaving[order]).int()
    passed[-1:].fill_(1)  # the root comes last, and is accepted when nothing else is
    path = tree.path(int(tree.post_order[int(passed.argmax())]))
    return Verdict(path, draw(bonus_weights(tree, path, tokens, laws, arriving), generator))


def traversal_weights(tree: Tree, tokens: Tensor, laws: Laws) -> tuple[Tensor, Tensor]:
    """Of every node, float64 [n]: the weight it arrives with, and its chance once all nodes before it are rejected."""
    nobody = tree.size  # a place for what is written of children that are not there
    arriving = torch.ones(tree.size + 1, dtype=torch.float64, device=tokens.device)
    leaving = arriving.clone()
    for depth in range(tree.depth):
        level = np.flatnonzero(tree.depth_array == depth)
        for family in families(tree, level, laws.most_rows, tokens.device):
            rejected = _reject(family, tokens, laws, arriving[family.parents], replacement=False)
            leaving[family.parents] = rejected.weight
            children = family.children_or(nobody)
            arriving[children] = leaving[children] = rejected.chances
    return arriving[:nobody], leaving[:nobody]


def verify_match(tree: Tree, tokens: Tensor, laws: Laws, generator: torch.Generator) -> Verdict:
    """Sample the target's token after each node and go on to the child that has it, if there is one.

    Exact for any tree whose tokens do not depend on these samples, however they were chosen.
    """
    root = torch.zeros(1, dtype=torch.int64, device=tokens.device)
    bonus = draw(laws.target(root)[0], generator)
    return follow(tree, tokens, Verdict([], bonus), range(1, tree.size), laws, generator)


RULES: dict[str, Rule] = {
    "top-down": verify_top_down,
    "traversal": verify_traversal,
    "match": verify_match,
    "multi-round": verify_multi_round,
}


def follow(
    tree: Tree, tokens: Tensor, verdict: Verdict, nodes: Sequence[int], laws: Laws, generator: torch.Generator
) -> Verdict:
    """Go on from `verdict` by matching: as long as the bonus token is that of a child among `nodes`.

    `nodes` hold tokens that may be chosen in any way, but not by looking at the samples drawn here or at the bonus.
    """
    if not nodes:
        return verdict
    chosen = np.full(tree.size, -1, dtype=np.int64)
    chosen[verdict.last] = verdict.bonus
    ids = upload(nodes, tokens.device)
    samples = [draw_rows(laws.target(piece), generator) for piece in ids.split(laws.most_rows)]
    chosen[nodes] = torch.cat(samples).cpu().numpy()
    return _descend(tree, tokens, chosen, verdict.path, frozenset(nodes))


def verify_greedy(tree: Tree, tokens: Tensor, best: Tensor) -> Verdict:
    """Accept what the target would have chosen: tokens[i] is node i's token, best[i] the target's argmax after node i.

    Exact for any tree, however its tokens were chosen.
    """
    return _descend(tree, tokens, best.cpu().numpy(), [], None)


def _descend(
    tree: Tree, tokens: Tensor, chosen: NDArray[np.int64], path: list[int], among: frozenset[int] | None
) -> Verdict:
    """From the end of `path` down through children (those in `among`) that hold the token chosen at their parent."""
    hits = np.flatnonzero(tokens.cpu().numpy()[1:] == chosen[tree.parent_array[1:]]) + 1
    matching = {tree.parents[node]: int(node) for node in hits[::-1] if among is None or int(node) in among}
    path = list(path)
    node = path[-1] if path else 0
    while node in matching:
        node = matching[node]
        path.append(node)
    return Verdict(path, int(chosen[node]))


def _ratio_tests(tree: Tree, tokens: Tensor, laws: Laws, generator: torch.Generator, replacement: bool) -> Verdict:
    chances = ratio_chances(tree, tokens, laws, replacement)
    passed = (_uniform(tree.size, tokens.device, generator) < chances).cpu().numpy()
    first_passed = {tree.parents[node]: int(node) for node in np.flatnonzero(passed)[::-1]}
    path: list[int] = []
    node = 0
    while node in first_passed:
        node = first_passed[node]
        path.append(node)
    full = torch.ones_like(chances)
    return Verdict(path, draw(bonus_weights(tree, path, tokens, laws, full, replacement), generator))


def ratio_chances(tree: Tree, tokens: Tensor, laws: Laws, replacement: bool) -> Tensor:
    """Of every node, float64 [n]: its chance once its parent is accepted and its earlier siblings are rejected."""
    nobody = tree.size
    chances = torch.zeros(tree.size + 1, dtype=torch.float64, device=tokens.device)
    for family in families(tree, np.arange(tree.size), laws.most_rows, tokens.device):
        full = torch.ones(len(family.parents), dtype=torch.float64, device=tokens.device)
        rejected = _reject(family, tokens, laws, full, replacement)
        chances[family.children_or(nobody)] = rejected.chances
    return chances[:nobody]


@dataclass(frozen=True)
class _Rejected:
    """What m parents are left with once all their children are rejected.

    chances: float64 [m, most children], of each child, once its earlier siblings are rejected. weight: float64 [m].
    left: float32 [m, V], proportional to what the target has left.
    """

    chances: Tensor
    weight: Tensor
    left: Tensor


def _reject(family: Family, tokens: Tensor, laws: Laws, weight: Tensor, replacement: bool) -> _Rejected:
    """The ratio tests of every child against what its earlier siblings leave, for parents that arrive with `weight`.

    With weight A, target law p and draft law q, a child's chance is min(1, A p / q); rejecting it leaves the positive
    part of A p - q, whose sum S makes the weight S / (S + 1 - A). Weight 1 stays 1: Sequoia's rule. Laws are kept
    unnormalised, beside their sums in float64. A rejected token has nothing left of p, so it may stay in q.
    """
    p, q = laws.target(family.parents), laws.draft(family.parents)
    drawn = family.tokens(tokens)
    q_tokens, q_sums = _draft_left(q, drawn, family.present, replacement)
    p_sum = p.sum(-1, dtype=torch.float64)
    chances = torch.zeros(drawn.shape, dtype=torch.float64, device=drawn.device)
    weight = weight.clone()
    for number, count in enumerate(family.having):
        a, p_whole = weight[:count], p_sum[:count]
        p_token = p[:count].gather(1, drawn[:count, number, None])[:, 0].double()
        q_token, q_whole = q_tokens[:count, number], q_sums[:count, number]
        chances[:count, number] = (a * p_token * q_whole / (p_whole * q_token)).clamp_(max=1)
        q_share = (p_whole / (a * q_whole)).clamp_(max=_LARGEST).float()
        left = p[:count].addcmul_(q[:count], q_share[:, None], value=-1).clamp_(min=0).sum(-1, dtype=torch.float64)
        part = a * left / p_whole
        p_sum[:count] = torch.where(left > 0, left, p_whole)
        weight[:count] = torch.where(part > 0, (part / (part + 1 - a)).clamp_(max=1), (a == 1).double())
    return _Rejected(chances, weight, p)


def _draft_left(q: Tensor, drawn: Tensor, present: Tensor, replacement: bool) -> tuple[Tensor, Tensor]:
    """Of each child drawn from the rows of q [m, V], float64 [m, K] both: its weight there, and all that is left there
    for it and the tokens after it.

    What is left is summed from what nobody drew upwards. Subtracting what was drawn from the whole would lose it as
    soon as a draft is certain to 1e-16 of a token; then an all but impossible token of the target could come out.
    """
    tokens = q.gather(1, drawn)
    weights = tokens.double().masked_fill_(~present, 0)
    if replacement:
        return weights, q.sum(-1, keepdim=True, dtype=torch.float64).expand_as(weights)
    undrawn = q.scatter_(1, drawn, 0).sum(-1, keepdim=True, dtype=torch.float64)
    q.scatter_(1, drawn, tokens)
    return weights, undrawn + weights.flip(1).cumsum_(1).flip(1)


def bonus_weights(
    tree: Tree, path: list[int], tokens: Tensor, laws: Laws, arriving: Tensor, replacement: bool = False
) -> Tensor:
    """What the target has left at the end of `path`, all children there being rejected: float32 [V], unnormalised.

    arriving: float64 [n], the weight that each node arrives with; all 1 for ratio tests from the root down.
    """
    node = np.array(path[-1:] or [0])
    law = laws.target(upload(node, tokens.device))[0]
    for family in families(tree, node, 1, tokens.device):
        left = _reject(family, tokens, laws, arriving[family.parents], replacement).left[0]
        law = torch.where(left.sum() > 0, left, law)  # p equals q up to rounding: go on with p itself
    return law


def _uniform(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.rand(count, dtype=torch.float64, device=device, generator=generator)
