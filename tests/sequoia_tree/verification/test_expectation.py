"""What a rule is expected to yield is what it yields on average."""

import pytest
import torch

from sequoia_tree import Tree
from sequoia_tree.drafting.end_tokens import up_to_end
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.expectation import expected_yield
from sequoia_tree.verification.sampling import draw_with_replacement, draw_without_replacement, log_probs, probabilities
from sequoia_tree.verification.verify import RULES

TREE = Tree([-1, 0, 0, 1, 1, 2, 0, 3])
DRAWINGS = {
    "traversal": draw_without_replacement,
    "top-down": draw_without_replacement,
    "multi-round": draw_with_replacement,
}


@pytest.mark.parametrize("ends", [(), (2,), (3,)])
@pytest.mark.parametrize("rule", sorted(DRAWINGS))
def test_verdicts_average_to_the_expectation(rule, ends):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, TREE.size, 6, generator=generator)
    draft = log_probs(logits[0], Sampling())
    target = probabilities(log_probs(0.6 * logits[0] + 0.4 * logits[1], Sampling()))
    tokens = torch.zeros(TREE.size, dtype=torch.int64)
    for node, children in enumerate(TREE.children):
        if children:
            tokens[children] = DRAWINGS[rule](draft[node : node + 1], len(children), generator)[0]
    distributions = Distributions(lambda nodes: target[nodes], lambda nodes: probabilities(draft[nodes]), 6)
    yields = []
    for _ in range(800):
        verdict = RULES[rule](TREE, tokens, distributions, generator)
        yields.append(len(up_to_end([*tokens[verdict.path].tolist(), verdict.bonus], ends)))
    expected = expected_yield(rule, TREE, tokens, distributions, ends)
    spread = torch.tensor(yields, dtype=torch.float64)
    assert expected > 1.1 and (bool(ends) == (expected < expected_yield(rule, TREE, tokens, distributions)))
    assert abs(spread.mean() - expected) < 4 * spread.std() / len(yields) ** 0.5


def test_other_rules_are_refused():
    with pytest.raises(ValueError, match="match"):
        expected_yield("match", TREE, torch.zeros(TREE.size, dtype=torch.int64), None)
