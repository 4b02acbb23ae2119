"""Credits of children: against a slow reference, against Sequoia's rule played out, and where numbers run out."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree.acceptance.acceptance import MAX_CHILDREN, SCALES
from sequoia_tree.acceptance.observe import credits, observe, observe_distributions, observe_greedy
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.sampling import draw_without_replacement, log_probs, probabilities

SHAPINGS = {
    "plain": Sampling(),
    "cold": Sampling(temperature=0.1),
    "zeros": Sampling(top_p=0.7),
    "hot": Sampling(temperature=3.0),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distributions(rows, vocabulary, sampling=SHAPINGS["plain"], likeness=1.0):
    """Log-laws [rows, vocabulary] of a target and of a draft that resembles it."""
    target = 1.5 * torch.randn(rows, vocabulary, generator=seeded(1))
    noise = torch.randn(rows, vocabulary, generator=seeded(2))
    return log_probs(target, sampling), log_probs(likeness * target + noise, sampling)


def slow_credits(p, q, children):
    """One context, as the definition says it: a list of credits, None where a child's earlier sibling is not known."""
    result, reach = [], 1.0
    for place in range(len(children) + 1):
        result.append(reach * sum(map(min, p, q)))
        if place == len(children):
            break
        token = children[place]
        if token < 0:
            rest = len(children) - place
            return result + [0.0 if sum(q) == 0 else None] * rest
        reach *= 1 - min(1.0, p[token] / q[token])
        residual = [max(a - b, 0.0) for a, b in zip(p, q)]
        p = [value / sum(residual) for value in residual] if sum(residual) > 0 else p
        q = [0.0 if i == token else value for i, value in enumerate(q)]
        q = [value / sum(q) for value in q] if sum(q) > 0 else q
    return result


def accepted_child(p, q, children, uniform):
    """Number of the child that Sequoia's rule accepts (arXiv 2402.12374, algorithm 2), 0 for none."""
    for number, token in enumerate(children, start=1):
        if token < 0:
            return 0
        if uniform() < p[token] / q[token]:
            return number
        residual = [max(a - b, 0.0) for a, b in zip(p, q)]
        p = [value / sum(residual) for value in residual] if sum(residual) > 0 else p
        q = [0.0 if i == token else value for i, value in enumerate(q)]
        q = [value / sum(q) for value in q] if sum(q) > 0 else q
    return 0


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("count", [1, 4, 9])  # 9: more children than tokens
def test_credits_are_those_of_the_reference(shaping, count):
    log_p, log_q = distributions(60, 7, SHAPINGS[shaping])
    p, q = probabilities(log_p), probabilities(log_q)
    children = draw_without_replacement(log_q, count, seeded())
    credit, known = credits(p, q, children)
    assert credit.shape == known.shape == (60, count + 1) and known.all()
    expected = [slow_credits(*row) for row in zip(p.double().tolist(), q.double().tolist(), children.tolist())]
    assert torch.allclose(credit.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6)


def test_children_that_were_not_drawn_leave_the_later_ones_unknown():
    log_p, log_q = distributions(40, 7)
    children = draw_without_replacement(log_q, 5, seeded())
    whole, _ = credits(log_p.exp(), log_q.exp(), children)
    for row in range(40):
        children[row, row % 6 :] = -1
    credit, known = credits(log_p.exp(), log_q.exp(), children)
    drawn = torch.arange(40) % 6
    assert torch.equal(known, torch.arange(6) <= drawn[:, None])
    assert torch.equal(credit, whole.masked_fill(~known, 0))


def test_no_children_at_all():
    log_p, log_q = distributions(5, 7)
    credit, known = credits(log_p.exp(), log_q.exp(), torch.empty(5, 0, dtype=torch.int64))
    assert torch.allclose(credit[:, 0], torch.minimum(log_p.exp(), log_q.exp()).sum(-1)) and known.all()


def test_a_distribution_without_further_tokens_is_known_to_accept_no_more():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.5, 0.5, 0.0]])
    credit, known = credits(p, q, torch.tensor([[0, 1, -1, -1]]))
    assert known.all() and credit[0, 2:].tolist() == [0, 0, 0]
    assert not credits(p, q, torch.tensor([[0, -1, -1]]))[1][0, 2]  # token 1 could have been drawn


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_mean_credits_are_the_chances_of_sequoias_rule(shaping):
    runs, count = 6000, 4
    log_p, log_q = distributions(1, 6, SHAPINGS[shaping], likeness=0.5)
    children = draw_without_replacement(log_q.expand(runs, -1), count, seeded())
    p, q, uniform = log_p[0].exp().tolist(), log_q[0].exp().tolist(), random.Random(0).random
    accepted = np.bincount([accepted_child(p, q, row, uniform) for row in children.tolist()], minlength=count + 1)
    credit, _ = credits(log_p.exp().expand(runs, -1), log_q.exp().expand(runs, -1), children)
    means = credit.double().mean(0).numpy()
    chances = accepted[1:] / runs
    for mean, chance in [*zip(means[:count], chances), (means[:count].sum(), chances.sum())]:
        assert abs(mean - chance) < 4.5 * math.sqrt(max(chance * (1 - chance), 1e-4) / runs)


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_a_draft_that_is_the_target_has_its_first_child_accepted(shaping):
    log_p, _ = distributions(50, 40, SHAPINGS[shaping])
    seen = observe_distributions(log_p, log_p, seeded())
    assert seen.positional()[0] == pytest.approx(1, abs=1e-6) and seen.positional()[1:].max() < 1e-6


def test_distributions_on_one_token():
    same, other = torch.eye(3)[[0, 0]], torch.eye(3)[[0, 1]]
    credit, known = credits(same, other, torch.tensor([[0, -1], [1, -1]]))
    assert credit.tolist() == [[1, 0, 0], [0, 0, 0]] and known.all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0.02, 5), st.floats(0.3, 1))
def test_credits_are_chances_of_things_that_exclude_each_other(seed, vocabulary, temperature, top_p):
    generator = seeded(seed)
    sampling = Sampling(temperature=temperature, top_p=top_p)
    log_p, log_q = (log_probs(4 * torch.randn(20, vocabulary, generator=generator), sampling) for _ in range(2))
    children = draw_without_replacement(log_q, 12, generator)
    credit, known = credits(probabilities(log_p), probabilities(log_q), children)
    assert known.all() and torch.isfinite(credit).all() and (credit >= 0).all()
    seen = observe(probabilities(log_p), probabilities(log_q), children)
    means = seen.credits.sum(0) / seen.counts.sum(0).clip(1)
    assert means.max() <= 1 + 1e-6
    assert np.allclose(seen.squares.sum(0)[:13], (credit.double() ** 2).sum(0).numpy(), atol=1e-4)


def test_contexts_fall_in_the_bin_of_the_drafts_largest_probability():
    q = torch.tensor([[0.95, 0.05], [0.97, 0.03], [1.0, 0.0], [0.5, 0.5]])
    seen = observe(torch.full((4, 2), 0.5), q, torch.tensor([[0], [0], [0], [0]]))
    assert seen.counts[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2]
    assert seen.credits[9, 0] == pytest.approx(0.55) and seen.counts[0, 2:].sum() == 0
    assert seen.positions == 4 and seen.scale_positions == 0


def test_more_children_than_a_table_holds():
    log_p, log_q = distributions(3, 60)
    many = draw_without_replacement(log_q, 50, seeded())
    seen = observe(log_p.exp(), log_q.exp(), many)
    assert seen.counts.shape[1] == MAX_CHILDREN and seen.positions == 3


def test_greedy_credit_goes_to_the_rank_of_the_targets_choice():
    target = torch.eye(40)[[5, 2, 39]]
    draft = torch.arange(40.0, 0, -1).repeat(3, 1)  # token 0 is likeliest
    seen = observe_greedy(target, draft)
    assert seen.credits.sum(0).nonzero()[0].tolist() == [2, 5]  # rank 39 has no child
    assert np.array_equal(seen.credits, seen.squares) and np.all(seen.counts.sum(0) == 3)
    bins = seen.counts[:, 0].tolist()
    assert bins[6] == 3  # 1 - 1/e, for logits that fall by 1
    assert seen.scale_positions == 3
    steepest = [-sum((draft[0] / t).log_softmax(-1)[token].clamp(min=-100).item() for token in (5, 2, 39))
                for t in SCALES]  # fmt: skip
    assert np.allclose(seen.scale_losses, steepest, rtol=1e-5)


def test_greedy_ties_go_to_the_lower_token():
    draft = torch.tensor([[1.0, 2.0, 2.0, 2.0]])
    ranks = [observe_greedy(torch.eye(4)[[token]], draft).positional().argmax() for token in range(4)]
    assert ranks == [3, 0, 1, 2]


def test_greedy_tokens_that_the_draft_does_not_know():
    draft = torch.tensor([[0.0, 1.0, -math.inf]])
    seen = observe_greedy(torch.eye(3)[[2]], draft)
    assert np.all(np.isfinite(seen.scale_losses)) and seen.positional()[2] == 1


def test_sharper_drafts_are_fitted_by_smaller_scales():
    generator = seeded()
    target = 3 * torch.randn(400, 50, generator=generator)
    draft = target + torch.randn(400, 50, generator=generator)
    # The sharper the draft's logits the larger the scale at which they say how sure they may be.
    assert observe_greedy(target, 0.3 * draft).scale() < observe_greedy(target, draft).scale()


def test_greedy_logits_may_be_of_half_precision():
    target, draft = torch.randn(2, 9, 30, generator=seeded()).bfloat16()
    assert observe_greedy(target, draft).positions == 9
