"""Which path of a tree is accepted: rules whose text is exactly the target's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.sampling import draw, probabilities
from sequoia_tree.tree import Tree

Law = Callable[[int], Tensor]  # node id -> log-probabilities [V] of the token after it


@dataclass(frozen=True)
class Verdict:
    """What a pass yields: the tokens at the nodes of `path` (root excluded, downwards), then the token `bonus`."""

    path: list[int]
    bonus: int


def verify_greedy(tree: Tree, tokens: list[int], best: list[int]) -> Verdict:
    """Accept what the target would have chosen: tokens[i] is node i's token, best[i] the target's argmax after node i.

    Exact for any tree, however its tokens were chosen.
    """
    path: list[int] = []
    node = 0
    while (child := next((c for c in tree.children[node] if tokens[c] == best[node]), None)) is not None:
        path.append(child)
        node = child
    return Verdict(path, best[node])


def verify_top_down(
    tree: Tree, tokens: list[int], target_law: Law, draft_law: Law, generator: torch.Generator
) -> Verdict:
    """Sequoia's rule (arXiv 2402.12374, algorithm 2): ratio tests of the children in drawing order, from the root down.

    tokens[i] is node i's token, the root's is not read. Both laws give float32 log-probabilities [V] on the
    generator's device, and are asked only for the nodes on the way. The children of a node must have been drawn
    without replacement from `draft_law` and none dropped; then the tokens follow the target's law exactly.
    """
    path: list[int] = []
    node = 0
    while children := tree.children[node]:
        drawn = [tokens[child] for child in children]
        p, q = probabilities(target_law(node)), probabilities(draft_law(node))
        accepted, weights = ratio_tests(drawn, p, q, generator)
        if accepted is None:
            return Verdict(path, draw(weights, generator))
        node = children[accepted]
        path.append(node)
    return Verdict(path, draw(probabilities(target_law(node)), generator))


def ratio_tests(drawn: list[int], p: Tensor, q: Tensor, generator: torch.Generator) -> tuple[int | None, Tensor]:
    """Place of the first accepted token in `drawn`, and the weights that the target has left when there is none.

    p and q [V] are the target's and the draft's weights: proportional to their laws, which saves normalising 128,256
    numbers for each child. q is overwritten. The device is waited for once per tested child, mostly once per node.
    """
    for place, token in enumerate(drawn):
        assert token >= 0, "a child for which no token was left to draw must be pruned before verification"
        uniform = torch.rand((), dtype=p.dtype, device=p.device, generator=generator)
        u, p_sum, q_sum, p_token, q_token = torch.stack((uniform, p.sum(), q.sum(), p[token], q[token])).tolist()
        assert q_token > 0, f"child token {token} was not drawn from the draft law less its elder siblings"
        if u * p_sum * q_token < p_token * q_sum:  # u < p(token) / q(token), normalised
            return place, p
        residual = torch.sub(p, q, alpha=p_sum / q_sum).clamp_(min=0)
        p = torch.where(residual.sum() > 0, residual, p)  # p equals q up to rounding: go on with p itself
        q[token] = 0
    return None, p
