"""Verification: which path of a tree is accepted. The text follows exactly the target's distribution.

Tests run for all nodes at once, and the host reads only the result: it waits for the device once or twice in a pass,
whatever the number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_tree.tree import Tree
from sequoia_tree.uploads import upload
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.ratio_tests import RatioTests
from sequoia_tree.verification.sampling import draw_rows


@dataclass(frozen=True)
class AcceptedPath:
    """What a pass yields: the tokens at the nodes of `path` (root excluded, downwards), then the token `bonus`."""

    path: list[int]
    bonus: int

    @property
    def last(self) -> int:
        """The node after which the bonus token comes."""
        return self.path[-1] if self.path else 0


Rule = Callable[[Tree, Tensor, Distributions, torch.Generator], AcceptedPath]


def verify_top_down(
    tree: Tree, tokens: Tensor, distributions: Distributions, generator: torch.Generator
) -> AcceptedPath:
    """Sequoia's rule (arXiv 2402.12374, algorithm 2): ratio tests of the children in drawing order, from the root down.

    tokens: int64 [n], node i's token; the root's is not read. The children of a node must have been drawn without
    replacement from the draft's distribution and none dropped; then the tokens follow the target's distribution
    exactly.
    """
    return _ratio_tests(tree, tokens, distributions, generator, replacement=False)


def verify_multi_round(
    tree: Tree, tokens: Tensor, distributions: Distributions, generator: torch.Generator
) -> AcceptedPath:
    """SpecInfer's rule (arXiv 2305.09781): as `verify_top_down`, for children drawn *with* replacement."""
    return _ratio_tests(tree, tokens, distributions, generator, replacement=True)


def verify_traversal(
    tree: Tree, tokens: Tensor, distributions: Distributions, generator: torch.Generator
) -> AcceptedPath:
    """Bottom-up traversal (arXiv 2505.12398), for trees as `verify_top_down` takes them; accepts more.

    A node arrives with a weight from the ratios along its path. Once its children and all nodes before it are rejected,
    it is accepted with the weight that its children leave. Weights do not depend on what is accepted, so they are
    computed level by level; the path ends at the first node in post-order that passes its test.
    """
    if tree.size == 1:
        return _root_alone(tokens, distributions, generator)
    tests = RatioTests(tree, tokens, distributions, hand_on=True)
    order = tests.post_order
    passed = (_uniform(tree.size, tokens.device, generator) < tests.weights[order]).int()
    passed[-1:].fill_(1)  # the root comes last, and is accepted when nothing else is
    return _accepted_path(tree, order[passed.argmax(0, keepdim=True)], tests, generator)


def verify_match(tree: Tree, tokens: Tensor, distributions: Distributions, generator: torch.Generator) -> AcceptedPath:
    """Sample the target's token after each node and continue with the child that holds it, if there is one.

    Exact for any tree whose tokens do not depend on these samples, however they were chosen.
    """
    return follow(
        tree, tokens, _root_alone(tokens, distributions, generator), range(1, tree.size), distributions, generator
    )


RULES: dict[str, Rule] = {
    "top-down": verify_top_down,
    "traversal": verify_traversal,
    "match": verify_match,
    "multi-round": verify_multi_round,
}


def follow(
    tree: Tree,
    tokens: Tensor,
    accepted_path: AcceptedPath,
    nodes: Sequence[int],
    distributions: Distributions,
    generator: torch.Generator,
) -> AcceptedPath:
    """Extend `accepted_path` by matching, as long as a child among `nodes` holds the bonus token.

    `nodes` hold tokens that may be chosen in any way, but not by looking at the samples drawn here or at the bonus.
    """
    if not nodes:
        return accepted_path
    chosen = np.full(tree.size, -1, dtype=np.int64)
    chosen[accepted_path.last] = accepted_path.bonus
    ids = upload(nodes, tokens.device)
    samples = [
        draw_rows(distributions.target(piece), generator) for piece in ids.split(distributions.most_rows(tokens.device))
    ]
    chosen[nodes] = torch.cat(samples).cpu().numpy()
    return _descend(tree, tokens, chosen, accepted_path.path, frozenset(nodes))


def verify_greedy(tree: Tree, tokens: Tensor, best: Tensor) -> AcceptedPath:
    """Accept what the target would have chosen: tokens[i] is node i's token, best[i] the target's argmax after node i.

    Exact for any tree, however its tokens were chosen.
    """
    return _descend(tree, tokens, best.cpu().numpy(), [], None)


def _descend(
    tree: Tree, tokens: Tensor, chosen: NDArray[np.int64], path: list[int], among: frozenset[int] | None
) -> AcceptedPath:
    """From the end of `path` down through children (those in `among`) that hold the token chosen at their parent."""
    matches = np.flatnonzero(tokens.cpu().numpy()[1:] == chosen[tree.parent_array[1:]]) + 1
    matching = {tree.parents[node]: int(node) for node in matches[::-1] if among is None or int(node) in among}
    path = list(path)
    node = path[-1] if path else 0
    while node in matching:
        node = matching[node]
        path.append(node)
    return AcceptedPath(path, int(chosen[node]))


def _ratio_tests(
    tree: Tree, tokens: Tensor, distributions: Distributions, generator: torch.Generator, replacement: bool
) -> AcceptedPath:
    """From the root, repeatedly down to the first child that passes its test."""
    if tree.size == 1:
        return _root_alone(tokens, distributions, generator)
    tests = RatioTests(tree, tokens, distributions, hand_on=False, replacement=replacement)
    passed = _uniform(tree.size, tokens.device, generator) < tests.chances
    return _accepted_path(tree, tests.end_of_path(passed), tests, generator)


def _accepted_path(tree: Tree, last: Tensor, tests: RatioTests, generator: torch.Generator) -> AcceptedPath:
    """The path to the node `last`, int64 [1], and a token drawn from what is left there. Waits for the device once."""
    bonus = draw_rows(tests.left(last)[None], generator)
    node, token = torch.cat((last, bonus)).tolist()
    return AcceptedPath(tree.path(node), token)


def _root_alone(tokens: Tensor, distributions: Distributions, generator: torch.Generator) -> AcceptedPath:
    root = torch.zeros(1, dtype=torch.int64, device=tokens.device)
    return AcceptedPath([], int(draw_rows(distributions.target(root), generator)))


def _uniform(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.rand(count, dtype=torch.float64, device=device, generator=generator)
