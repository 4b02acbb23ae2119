"""The frontier takes what a heap would take, whatever the expansion steps."""

import heapq
import math

import pytest
import torch

from sequoia_tree.drafting.adaptive import Frontier
from sequoia_tree.drafting.end_tokens import Endings, up_to_end
from sequoia_tree.tree import Tree

CHILDREN = 5
ENDS = frozenset(range(0, 40, 7))


def offers(path: tuple[int, ...], runs_out: bool) -> tuple[list[int], list[float]]:
    """Tokens and costs of the children of a node, a function of the tokens on its path alone."""
    random = torch.Generator().manual_seed(hash(path) % 2**31)
    tokens = torch.randperm(40, generator=random)[:CHILDREN].tolist()
    costs = torch.rand(CHILDREN, generator=random, dtype=torch.float64).cumsum(0).mul_(2).tolist()
    if runs_out:
        count = int(torch.randint(0, CHILDREN + 1, (), generator=random)) if path else 2
        tokens = [*tokens[:count], *[-1] * (CHILDREN - count)]
    return tokens, costs


def ending(ends=frozenset()) -> torch.Tensor:
    return Endings(torch.device("cpu")).table(ends, 40)


def heap_paths(count: int, max_depth: int, runs_out: bool, ends=frozenset()) -> set[tuple[int, ...]]:
    """Paths of the `count` nodes that a heap takes one by one."""
    heap, taken = [], set()

    def push(path: tuple[int, ...], priority: float) -> None:
        if len(path) < max_depth and not ends.intersection(path):
            for token, cost in zip(*offers(path, runs_out)):
                if token >= 0:
                    heapq.heappush(heap, (priority + cost, (*path, token)))

    push((), 0.0)
    while heap and len(taken) < count:
        priority, path = heapq.heappop(heap)
        taken.add(path)
        push(path, priority)
    return taken


def grow(expansions: int, width: int, count: int, runs_out: bool, ends=frozenset()):
    frontier = Frontier(expansions, width, CHILDREN, torch.device("cpu"))
    for _ in range(2):  # the second tree finds what the first has left behind
        frontier.restart(7, ending(ends))
        for expansion in range(expansions + 1):
            if expansion:
                frontier.expand()
            paths = []
            for node in range(frontier.begin, frontier.end):
                ids = frontier.ancestors[node, : frontier.end].nonzero()[:, 0].tolist()
                assert ids[-1] == node and len(ids) == frontier.depths[node] + 1
                paths.append(tuple(frontier.tokens[ids[1:]].tolist()))
                assert not ends.intersection(paths[-1]), "an end token is never expanded"
            tokens, costs = zip(*(offers(path, runs_out) for path in paths))
            frontier.open(torch.tensor(tokens), torch.tensor(costs))
    return frontier.best(count)


@pytest.mark.parametrize("ends", [frozenset(), ENDS], ids=["no ends", "ends"])
@pytest.mark.parametrize("runs_out", [False, True])
@pytest.mark.parametrize("expansions, width, count", [(0, 1, 4), (1, 3, 6), (3, 8, 10), (4, 30, 30), (6, 40, 25)])
def test_wide_expansions_grow_what_a_heap_takes(expansions, width, count, runs_out, ends):
    grown = grow(expansions, width, count, runs_out, ends)
    tree = Tree(grown.parents)
    paths = [tuple(grown.tokens[node] for node in tree.path(node)) for node in range(tree.size)]
    assert len(set(paths)) == tree.size and grown.tokens[0] == 7
    assert set(paths[1:]) == heap_paths(count, expansions + 1, runs_out, ends)
    if ends and count > 20:
        assert ends.intersection(grown.tokens[1:]), "end tokens are kept as leaves"
    for node in range(tree.size):
        order = [offers(paths[node], runs_out)[0].index(grown.tokens[child]) for child in tree.children[node]]
        assert order == list(range(len(order))), "siblings are taken in drawing order, without gaps"
        assert grown.expanded[node] >= 0 or not tree.children[node]


def test_narrow_expansions_still_grow_a_tree():
    grown = grow(expansions=5, width=2, count=20, runs_out=False)
    tree = Tree(grown.parents)
    assert tree.size == 21
    assert sum(expanded > 0 for expanded in grown.expanded) <= 10


@pytest.mark.parametrize("width", [1, 2, 5])
def test_end_tokens_stay_where_nothing_is_left_to_expand(width):
    """Steps are filled up with nodes without a token, for which any slot stands, that of an end token too."""
    frontier = Frontier(1, width, 1, torch.device("cpu"))
    frontier.restart(0, ending(frozenset([4])))
    frontier.open(torch.tensor([[4]]), torch.zeros(1, 1))
    frontier.expand()
    frontier.open(torch.full((width, 1), -1), torch.zeros(width, 1))
    assert frontier.best(3).tokens == [0, 4]


def test_equal_priorities_leave_no_orphans():
    frontier = Frontier(3, 4, 3, torch.device("cpu"))
    frontier.restart(0, ending())
    for expansion in range(4):
        if expansion:
            frontier.expand()
        count = frontier.end - frontier.begin
        frontier.open(torch.arange(3).repeat(count, 1), torch.zeros(count, 3))
    for count in range(1, 30):
        grown = frontier.best(count)
        assert Tree(grown.parents).size == count + 1
        assert math.isfinite(sum(grown.expanded))


def test_a_text_ends_at_the_first_end_token():
    assert up_to_end([4, 2, 9, 2], {2, 9}) == [4, 2]
    assert up_to_end([4, 5], {2}) == [4, 5] and up_to_end([], {2}) == []


def test_endings_follow_the_request():
    endings = Endings(torch.device("cpu"))
    assert endings.table(frozenset([1, 9]), 3).tolist() == [False, True, False, True]
    assert endings.table(frozenset([2]), 3).tolist() == [False, False, True, True]
    assert endings.table(frozenset([2]), 3) is endings.table(frozenset([2]), 3)
