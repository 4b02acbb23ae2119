"""The ratio rules on distributions at the edges of what float32 can hold: chances stay chances, and a token always
comes out.
"""

import pytest
import torch

from sequoia_tree import DEFAULT_ACCEPTANCE, optimal_tree
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.ratio_tests import RatioTests
from sequoia_tree.verification.sampling import draw_without_replacement, log_probs, probabilities
from sequoia_tree.verification.verify import RULES

TREE = optimal_tree(DEFAULT_ACCEPTANCE, 48, 12)


def filled(target_logits, draft_logits, sampling):
    """The tree with drawn tokens, without nodes for which none was left, and the distributions at its nodes."""
    generator = torch.Generator().manual_seed(0)
    draft = log_probs(draft_logits, sampling)
    tokens = torch.zeros(TREE.size, dtype=torch.int64)
    for node, children in enumerate(TREE.children):
        if children:
            tokens[children] = draw_without_replacement(draft[node : node + 1], len(children), generator)[0]
    tree, kept = TREE.prune((tokens >= 0).tolist())
    rows = torch.tensor(kept)
    target = log_probs(target_logits, sampling)
    distributions = Distributions(
        lambda nodes: probabilities(target[rows[nodes]]),
        lambda nodes: probabilities(draft[rows[nodes]]),
        target.shape[1],
    )
    return tree, tokens[rows], distributions


@pytest.mark.parametrize("temperature", [0.05, 0.6, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("distance", [0.0, 0.01, 1.0, 6.0], ids=lambda value: f"apart-{value}")
def test_chances_are_chances(temperature, top_p, distance):
    generator = torch.Generator().manual_seed(int(10 * distance))
    draft = 4 * torch.randn(TREE.size, 40, generator=generator)
    target = draft + distance * torch.randn(TREE.size, 40, generator=generator)
    tree, tokens, distributions = filled(target, draft, Sampling(temperature=temperature, top_p=top_p))
    traversal, ratio_tests = (RatioTests(tree, tokens, distributions, hand_on) for hand_on in (True, False))
    values = torch.cat((traversal.chances, traversal.weights, ratio_tests.chances))
    assert torch.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
    for rule in ("traversal", "top-down", "match"):
        accepted_path = RULES[rule](tree, tokens, distributions, generator)
        last = torch.tensor([accepted_path.last])
        assert distributions.target(last)[0, accepted_path.bonus] > 0
        if distance == 0 and rule != "match":
            assert not tree.children[accepted_path.last], "equal distributions accept down to a leaf"


def test_a_vocabulary_of_128_256_tokens():
    generator = torch.Generator().manual_seed(0)
    draft = 3 * torch.randn(TREE.size, 128_256, generator=generator)
    tree, tokens, distributions = filled(draft, draft, Sampling(temperature=0.6))
    assert tree.size == TREE.size
    for rule in ("traversal", "top-down"):
        assert not tree.children[RULES[rule](tree, tokens, distributions, generator).last]


def test_more_children_than_tokens_of_positive_probability():
    draft = torch.full((TREE.size, 40), -torch.inf)
    draft[:, :3] = torch.tensor([0.0, -1.0, -2.0])
    target = torch.zeros(TREE.size, 40)
    tree, tokens, distributions = filled(target, draft, Sampling())
    assert tree.size < TREE.size and max(len(children) for children in tree.children) == 3
    generator = torch.Generator().manual_seed(0)
    bonuses = {RULES["traversal"](tree, tokens, distributions, generator).bonus for _ in range(40)}
    assert bonuses - {0, 1, 2}, "what the draft cannot propose still comes from the target"
