import itertools
import math
from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sequoia_tree.shaping.contexts import Contexts, Text
from sequoia_tree.shaping.repetition import RepetitionPenalty
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.sampling import draw, draw_without_replacement, log_probs, probabilities, processed
from tests.chi_square import p_value

SHAPES = [
    {},
    {"temperature": 0.05},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.3, "temperature": 2.0},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.6, "top_k": 4, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 100, "top_p": 0.95},
    {"repetition_penalty": 1.3, "temperature": 0.7, "top_p": 0.9},
    {"repetition_penalty": 0.5, "top_k": 3},
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def with_penalty(shape):
    """The sampling with its repetition penalty as a rule."""
    sampling = Sampling(**shape)
    rules = (RepetitionPenalty(sampling.repetition_penalty),) if sampling.repetition_penalty != 1 else ()
    return replace(sampling, rules=rules)


def contexts(seen):
    """Of a text of one token, behind which each row of `seen` [n, L] stands."""
    text = Text.of([int(seen[0, 0])], seen.device)
    return Contexts(text, seen, torch.full((len(seen),), seen.shape[1]))


def reference(logits, sampling, seen):
    """The processors that `generate` would build, in its order."""
    steps = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.repetition_penalty != 1:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    scores = logits.float()
    for step in steps:
        scores = step(seen, scores)
    return scores.log_softmax(-1)


@pytest.mark.parametrize("vocabulary", [1, 7, 300, 20_000])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_distribution_agrees_with_transformers(shape, vocabulary):
    sampling = with_penalty(shape)
    logits = 3 * normal(4, vocabulary)
    seen = torch.randint(vocabulary, (4, 9), generator=generator())
    seen[:, 0] = 0
    distribution, expected = log_probs(logits, sampling, contexts(seen)), reference(logits, sampling, seen)
    assert distribution.dtype == torch.float32
    torch.testing.assert_close(distribution, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ties_agree_with_transformers(shape):
    sampling = with_penalty(shape)
    logits = torch.randint(-2, 3, (50, 12), generator=generator()).float()
    seen = torch.zeros(50, 1, dtype=torch.int64)
    torch.testing.assert_close(log_probs(logits, sampling, contexts(seen)), reference(logits, sampling, seen))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wide_ties_keep_as_many_tokens_as_transformers(shape):
    """Hundreds of tokens tie at the edge; which of them top-p keeps depends on an unstable sort in transformers."""
    sampling = with_penalty(shape)
    logits = torch.randint(-2, 3, (3, 4000), generator=generator()).bfloat16()
    seen = torch.zeros(3, 1, dtype=torch.int64)
    distribution, expected = log_probs(logits, sampling, contexts(seen)), reference(logits, sampling, seen)
    torch.testing.assert_close(distribution.sort().values, expected.sort().values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, {"temperature": 0.0}], ids=str)
def test_logits_of_minus_infinity_stay_excluded(shape):
    logits = normal(2, 400)
    logits[:, 3:] = -math.inf
    distribution = log_probs(logits, Sampling(**shape))
    assert (distribution[:, 3:] == -math.inf).all()
    torch.testing.assert_close(distribution.exp().sum(-1), torch.ones(2))


def test_temperature_0_is_the_argmax_of_the_penalised_logits():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    sampling = with_penalty({"temperature": 0, "repetition_penalty": 2.0})
    distribution = log_probs(logits, sampling, contexts(torch.tensor([[0]])))
    assert distribution.tolist() == [[-math.inf, 0.0, -math.inf]]
    assert log_probs(logits, Sampling(temperature=0)).argmax() == 0


def test_penalty_counts_a_token_once_and_skips_padding():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    seen = contexts(torch.tensor([[1, 0, 0, -1, 99]]))
    assert processed(logits, with_penalty({"repetition_penalty": 2.0}), seen).tolist() == [[1.0, -4.0, 1.0]]


@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e-20, 1e-8])
def test_the_smallest_temperatures_leave_the_likeliest(temperature):
    """Their logits over the temperature would be infinite, and a distribution of infinities no distribution."""
    distribution = log_probs(torch.tensor([[30.0, 29.9, -500.0, 2.0], [-9.0, -7.0, -7.0, -8.0]]), Sampling(temperature))
    torch.testing.assert_close(distribution.exp(), torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]]))


def test_a_small_temperature_follows_the_division():
    logits, sampling = normal(3, 50) / 100, Sampling(temperature=9e-4)
    torch.testing.assert_close(log_probs(logits, sampling), (logits / 9e-4).log_softmax(-1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
def test_the_largest_penalties_stay_finite(penalty):
    logits = torch.tensor([[1e4, -1e4, 3.0]])
    sampling = with_penalty({"repetition_penalty": penalty, "temperature": 1e-30})
    assert log_probs(logits, sampling, contexts(torch.tensor([[0, 1]]))).exp().sum() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": 2.0},
        {"temperature": 1e39},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-38},
        {"repetition_penalty": 1e38},
        {"encoder_repetition_penalty": 1e-7},
        {"presence_penalty": 1e38},
        {"frequency_penalty": -math.inf},
        {"frequency_penalty": math.nan},
        {"dry_multiplier": -1.0},
        {"dry_base": 0.5},
        {"dry_allowed_length": 1.5},
        {"xtc_probability": 1.5},
        {"typical_p": 0.0},
        {"top_h": 0.0},
        {"no_repeat_ngram_size": -1},
        {"min_new_tokens": math.inf},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Sampling(**wrong)


@pytest.mark.parametrize("value", ["1", None, True, [1]])
def test_values_that_are_no_numbers_are_named(value):
    with pytest.raises(TypeError, match="top_p must be a number"):
        Sampling(top_p=value)


def test_whole_numbers_may_be_written_as_floats():
    sampling = Sampling(top_k=50.0)
    assert (sampling.top_k, type(sampling.top_k)) == (50, int)
    assert Sampling(top_k=10**12) == Sampling(top_k=10**9), "more tokens than any vocabulary has"


def distribution_of_draws(distribution, count):
    """Exact probability of every sequence of `count` draws without replacement, [V] * count."""
    joint = torch.zeros([len(distribution)] * count, dtype=torch.float64)
    for sequence in itertools.permutations(range(len(distribution)), count):
        probability, left = 1.0, 1.0
        for token in sequence:
            probability *= distribution[token] / left if left > 1e-12 else 0.0
            left -= distribution[token]
        joint[sequence] = probability
    return joint


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("distribution", [[0.5, 0.3, 0.1, 0.07, 0.03], [0.25] * 4, [0.9, 0.0, 0.06, 0.04]], ids=str)
def test_joint_distribution_of_draws_without_replacement(distribution, count):
    samples = 100_000
    all_log_probs = torch.tensor(distribution).log().expand(samples, -1)
    tokens = draw_without_replacement(all_log_probs, count, generator(count))
    places = (tokens * torch.tensor([len(distribution) ** i for i in reversed(range(count))])).sum(-1)
    counts = torch.bincount(places, minlength=len(distribution) ** count)
    assert p_value(counts, distribution_of_draws(distribution, count)) > 1e-3


def test_a_distribution_gives_no_more_children_than_it_has_tokens():
    all_log_probs = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.3, 0.5]]).log()
    tokens = draw_without_replacement(all_log_probs, 5, generator())
    assert tokens.shape == (3, 5) and tokens.dtype == torch.int64
    assert [[t for t in row if t >= 0] == row[: sum(t >= 0 for t in row)] for row in tokens.tolist()] == [True] * 3
    assert [sorted(t for t in row if t >= 0) for row in tokens.tolist()] == [[1], [0, 2], [0, 1, 2]]


def test_what_float32_cannot_hold_is_neither_drawn_nor_counted():
    distribution = torch.tensor([[0.0, -70.0, -90.0, -200.0]])
    assert draw_without_replacement(distribution, 3, generator()).tolist() == [[0, 1, -1]]
    assert (probabilities(distribution) > 0).tolist() == [[True, True, False, False]]


def test_a_generator_repeats_its_draws():
    distribution = normal(3, 50).log_softmax(-1)
    first, again, other = (draw_without_replacement(distribution, 4, generator(seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_one_draw_follows_weights_that_need_no_normalising():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.5, 0.0])
    random = generator()
    counts = torch.bincount(torch.tensor([draw(weights, random) for _ in range(20_000)]), minlength=6)
    assert p_value(counts, weights / weights.sum()) > 1e-3
    assert draw(torch.tensor([0.0, 1e-30, 0.0]), random) == 1
