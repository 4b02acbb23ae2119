"""Kernels that a step launches beside the models' own: their number grows with the tree's depth, not with its nodes."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offload_runtime.model.pass_part import PassPart
from offload_runtime.speculation import static_drafting
from offload_runtime.speculation.adaptive_drafting import AdaptiveDrafting
from offload_runtime.speculation.draft import Growth, joined
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.growth import run_growths
from offload_runtime.speculation.verification import Scored, verify
from scheduler.plan.tree_cost import EXPANSION_LAUNCHES, GROWTH_LAUNCHES, VERIFICATION_LAUNCHES
from sequoia_tree import Tree, chain, optimal_tree
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.drafting.priorities import DrawnCosts, LikeliestCosts
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.uploads import upload
from sequoia_tree.verification.sampling import draw_without_replacement, log_probs
from tests.pretend_cuda import Counts, PretendCuda, pretend_cuda

CUDA, VOCABULARY = torch.device("cuda"), 96
SAMPLING, ENDS = Sampling(temperature=0.6), frozenset([7])
SHARP = [0.7 * 0.3**child for child in range(32)]
FLAT = [0.6, 0.12, 0.05, 0.03, 0.02, 0.015, *[0.012 * 0.9**child for child in range(50)]]  # up to 32 children


@pytest.fixture(scope="module")
def cuda() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device


def filled(tree: Tree) -> tuple[DraftTree, torch.Tensor]:
    """The tree with tokens drawn from random distributions, and the target's logits at its nodes."""
    generator = torch.Generator().manual_seed(0)
    target = 2 * torch.randn(tree.size, VOCABULARY, generator=generator)
    distributions = log_probs(target + 0.5 * torch.randn(tree.size, VOCABULARY, generator=generator), SAMPLING)
    drawn = draw_without_replacement(distributions, tree.child_count_array.max(), generator).tolist()
    tokens = [0, *(drawn[parent][number - 1] for parent, number in zip(tree.parents[1:], tree.child_numbers[1:]))]
    rows = np.where(tree.child_count_array > 0, np.arange(tree.size), -1)
    held = upload(joined([distributions], SAMPLING).numpy(), CUDA)
    return DraftTree(tree, tokens, tree.size, rows, held, rows), upload(target.numpy(), CUDA)


def verification(cuda: PretendCuda, tree: Tree, rule: str) -> Counts:
    drawn, logits = filled(tree)
    generator = torch.Generator(CUDA).manual_seed(1)
    with cuda.counting() as counts:
        verify(Scored.of(drawn, logits, [1], SAMPLING), rule, generator)
    return counts


@pytest.mark.parametrize("rule", ["traversal", "top-down"])
@pytest.mark.parametrize("acceptance", [SHARP, FLAT], ids=["sharp", "flat"])
def test_verification_of_768_nodes(cuda, acceptance, rule):
    counts = verification(cuda, optimal_tree(acceptance, 768, 10), rule)
    assert counts.launches.total() <= 600
    assert counts.uploads.total() <= 2
    assert counts.waits.total() == 1


def binomial(expansions: int) -> Tree:
    """The largest tree whose tests take so many expansion steps: 2^expansion steps nodes."""
    parents = [-1]
    for _ in range(expansions):
        parents += list(range(len(parents)))
    return Tree(parents)


def test_launches_of_verification_grow_with_the_longest_path_alone(cuda):
    """A node's first child is tested right after it, and each further child after the one before."""
    few, many = (verification(cuda, tree, "traversal").launches.total() for tree in (chain(9), binomial(8)))
    longer = verification(cuda, chain(10), "traversal").launches.total()
    assert few == many
    assert longer - few == EXPANSION_LAUNCHES
    assert few <= VERIFICATION_LAUNCHES + 8 * EXPANSION_LAUNCHES


class RandomDraft:
    """A draft that computes nothing: logits at random, so that all launches are those of growing."""

    def __init__(self, rows: int):
        self.model, self.root_is_text = SimpleNamespace(device=CUDA), True
        logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self._logits = upload(logits.numpy(), CUDA)

    def reading(self, text: Sequence[int], sequence: int) -> Growth[torch.Tensor]:
        return self._logits[:1]
        yield

    def nodes(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, sequence: int) -> PassPart:
        assert visible.shape == (len(tokens), len(depths))
        return PassPart(tokens, None, len(tokens))

    def run(self, parts: Sequence[PassPart]) -> list[torch.Tensor]:
        return [self._logits[: part.wanted] for part in parts]


@pytest.mark.parametrize("root_is_text", [True, False])
def test_a_new_static_tree_is_uploaded_at_once(cuda, root_is_text):
    tree = optimal_tree(FLAT, 768, 10)
    with cuda.counting() as counts:
        there = static_drafting._levels(tree, root_is_text, CUDA)
    assert counts.uploads.total() == 1 and not counts.waits
    for one, level in zip(there, static_drafting._levels(tree, root_is_text, torch.device("cpu")), strict=True):
        for field in fields(static_drafting.Level):
            here, moved = getattr(level, field.name), getattr(one, field.name)
            assert (
                here == moved if field.name == "width" else torch.equal(here, moved.cpu()) and here.dtype == moved.dtype
            )
    assert len(there) == 10 and there[0].visible.dtype == torch.bool and there[0].children.dtype == torch.int64


def drafting(cuda: PretendCuda, size: int, depth: int, temperature: float = 0.6) -> Counts:
    draft = RandomDraft(size)
    growing = AdaptiveDrafting(draft, size, depth, children=16)
    costs = DrawnCosts.measured(Acceptance.from_positional(SHARP, 1000), CUDA) if temperature else LikeliestCosts(1.0)
    sampling, generator = Sampling(temperature=temperature), torch.Generator(CUDA).manual_seed(1)
    run_growths([growing.growing([1, 2, 3], sampling, generator, 0, ENDS, costs)], draft.run)
    with cuda.counting() as counts:
        (drawn,) = run_growths([growing.growing([1, 2, 3], sampling, generator, 0, ENDS, costs)], draft.run)
    assert drawn.tree.size == size
    return counts


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_growth_of_768_nodes(cuda, temperature):
    counts = drafting(cuda, 768, 10, temperature)
    assert counts.launches.total() <= 400
    assert not counts.uploads and counts.waits.total() == 1


def test_launches_of_growth_grow_with_depth_alone(cuda):
    few, many, deep = (drafting(cuda, *shape).launches.total() for shape in ((64, 8), (768, 8), (64, 9)))
    assert few == many
    assert deep - few == GROWTH_LAUNCHES
