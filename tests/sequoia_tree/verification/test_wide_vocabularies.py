"""A processor takes the rows of a wide vocabulary one by one, where they are: the tests come out as in blocks."""

import pytest
import torch

from sequoia_tree import DEFAULT_ACCEPTANCE, optimal_tree
from sequoia_tree.verification import distributions as blocks
from sequoia_tree.verification import ratio_tests
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.ratio_tests import RatioTests

VOCABULARY = 40
TREE = optimal_tree(DEFAULT_ACCEPTANCE, 48, 8)


def sample(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target and draft distributions at the nodes, and tokens drawn from the draft without replacement."""
    generator = torch.Generator().manual_seed(seed)
    draft = torch.randn(TREE.size, VOCABULARY, generator=generator).mul_(2).softmax(-1)
    target = (draft.log() + torch.randn(draft.shape, generator=generator)).softmax(-1)
    tokens = torch.zeros(TREE.size, dtype=torch.int64)
    for node, children in enumerate(TREE.children):
        if children:
            tokens[list(children)] = torch.multinomial(draft[node], len(children), generator=generator)
    return target, draft, tokens


@pytest.mark.parametrize("views", [True, False], ids=["views", "copies"])
@pytest.mark.parametrize("hand_on", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_rows_one_by_one_test_as_blocks_do(rows, hand_on, views, monkeypatch):
    """rows: those of a piece that is looked at together."""
    target, draft, tokens = sample(5)
    kept = draft.clone()
    seen = Distributions(
        lambda nodes: target[nodes],
        lambda nodes: draft[nodes],
        VOCABULARY,
        (lambda node: draft[node]) if views else None,
    )
    expected = RatioTests(TREE, tokens, seen, hand_on)
    monkeypatch.setattr(ratio_tests, "_WIDE", 1)
    monkeypatch.setattr(blocks, "_BLOCK", rows * VOCABULARY)
    found = RatioTests(TREE, tokens, seen, hand_on)
    torch.testing.assert_close(found.chances, expected.chances, rtol=1e-12, atol=0)
    if hand_on:
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-12, atol=0)
    assert torch.equal(draft, kept), "views are not written to"
    assert ((expected.chances > 0.01) & (expected.chances < 0.99)).sum() > 5, "there is something to compare"
