"""Rules that transformers does not know, each against the plain words of its definition, at every node of a tree."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree import Tree
from sequoia_tree.shaping.contexts import Text
from sequoia_tree.shaping.order import Bounds, TokenRules, bound_rules
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.shaping.xtc import exclude_top_choices
from sequoia_tree.verification.sampling import log_probs
from tests.chi_square import p_value

VOCABULARY = 9
PROMPT = [4, 7, 1, 3, 7, 1, 2, 0, 7]
TEXT = [*PROMPT, 1, 3, 7]
PARENTS = [-1, 0, 0, 1, 3, 4, 5, 2, 7, 8]
TOKENS = [7, 1, 5, 3, 7, 1, 2, 7, 1, 3]
BREAKERS = (0, 5)


def shaped(sampling, wanted=TokenRules()):  # noqa: B008
    """Log-probabilities of every node, and the text after each."""
    bounds = Bounds(PROMPT, frozenset(), 40, VOCABULARY, torch.device("cpu"))
    none = np.full(len(PARENTS), -1)
    drawn = DraftTree(Tree(PARENTS), TOKENS, len(PARENTS), none, None, none)
    sampling = replace(sampling, rules=bound_rules(sampling, wanted, bounds))
    distribution = log_probs(
        logits(), sampling, drawn.contexts(Text.of(TEXT, torch.device("cpu")), torch.tensor(TOKENS))
    )
    return distribution, [[*TEXT, *(TOKENS[node] for node in drawn.tree.path(node))] for node in range(len(PARENTS))]


def logits():
    return 2 * torch.randn(len(PARENTS), VOCABULARY, generator=torch.Generator().manual_seed(0))


def assert_distribution(distribution, scores):
    torch.testing.assert_close(distribution, torch.tensor(scores).log_softmax(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.7), (1.5, -0.4), (-1.0, 0.3)])
def test_presence_and_frequency_count_the_reply(presence, frequency):
    distribution, texts = shaped(Sampling(presence_penalty=presence, frequency_penalty=frequency))
    scores = logits().tolist()
    for row, text in zip(scores, texts):
        reply = text[len(PROMPT) :]
        for token in set(reply):
            row[token] -= frequency * reply.count(token) + presence
    assert_distribution(distribution, scores)


def test_biases_of_tokens_add_to_those_of_the_file():
    wanted = TokenRules(sequence_bias=(((3,), 1.0), ((7, 1), 2.0)), logit_bias=((3, 0.5), (4, -math.inf)))
    distribution, texts = shaped(Sampling(), wanted)
    scores = logits().tolist()
    for row, text in zip(scores, texts):
        row[3] += 1.5
        row[4] = -math.inf
        row[1] += 2.0 * (text[-1] == 7)
    assert_distribution(distribution, scores)


def repeated_before(text, breakers):
    """Of every token that followed the context's end earlier: the longest repeated sequence before it."""
    longest = {}
    if text[-1] in breakers:
        return longest
    for i in range(len(text) - 1):
        if text[i] != text[-1] or text[i + 1] in breakers:
            continue
        length = 1
        while length < min(50, i + 1) and text[i - length] == text[-1 - length] and text[i - length] not in breakers:
            length += 1
        longest[text[i + 1]] = max(length, longest.get(text[i + 1], 0))
    return longest


@pytest.mark.parametrize("last_n", [0, 5, 8, 100])
@pytest.mark.parametrize("breakers", [(), BREAKERS, (7,)])
@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_dry_grows_with_the_repeated_sequence(last_n, breakers, allowed):
    sampling = Sampling(dry_multiplier=0.8, dry_base=1.5, dry_allowed_length=allowed, dry_penalty_last_n=last_n)
    distribution, texts = shaped(sampling, TokenRules(dry_sequence_breakers=breakers))
    scores = logits().tolist()
    lengths = set()
    for row, text in zip(scores, texts):
        for token, length in repeated_before(text[-last_n:], breakers).items():
            if length >= allowed:
                row[token] -= 0.8 * 1.5 ** (length - allowed)
                lengths.add(length)
    assert_distribution(distribution, scores)
    assert breakers or last_n in (5, 8) or len(lengths) > 1, "several lengths are to occur"


def test_dry_counts_at_most_fifty_tokens():
    text = [1, 2, 3, 4] * 40
    bounds = Bounds(text, frozenset(), 400, VOCABULARY, torch.device("cpu"))
    sampling = Sampling(dry_multiplier=1.0, dry_base=1.01, dry_allowed_length=2)
    rules = bound_rules(sampling, TokenRules(), bounds)
    scores = rules[0](torch.zeros(1, VOCABULARY), Text.of(text, torch.device("cpu")).at_root())
    expected = torch.zeros(1, VOCABULARY)
    expected[0, 1] = -(1.01**48)
    torch.testing.assert_close(scores, expected)


def xtc_by_chance(distribution, probability, threshold, generator):
    """One draw as llama.cpp makes it: the coin first, then what is left."""
    distribution = distribution.clone()
    likely = [token for token in distribution.argsort(descending=True).tolist() if distribution[token] >= threshold]
    if torch.rand((), generator=generator) < probability and len(likely) > 1 and threshold <= 0.5:
        distribution[likely[:-1]] = 0
    return int(torch.multinomial(distribution, 1, generator=generator))


LAW = torch.tensor([0.35, 0.02, 0.25, 0.2, 0.18])


@pytest.mark.parametrize(("probability", "threshold"), [(0.5, 0.1), (1.0, 0.2), (0.3, 0.19), (0.5, 0.3), (0.5, 0.6)])
def test_xtc_is_the_mixture_of_its_coin(probability, threshold):
    mixture = exclude_top_choices(LAW.log()[None], probability, threshold)[0].exp()
    torch.testing.assert_close(mixture.sum(), torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    draws = [xtc_by_chance(LAW, probability, threshold, generator) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(draws), minlength=len(LAW))
    assert p_value(counts, mixture) > 1e-3
    changes = probability > 0 and sum(threshold <= LAW) > 1 and threshold <= 0.5
    assert torch.allclose(mixture, LAW) != changes
    assert not changes or p_value(counts, LAW) < 1e-8


def test_xtc_comes_after_what_cuts():
    """Of the two tokens that top-k leaves, both likely enough by then, only the lesser stays."""
    distribution = log_probs(LAW.log()[None], Sampling(top_k=2, xtc_probability=1.0, xtc_threshold=0.4))
    assert distribution.exp().tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]]


def test_xtc_at_temperature_0_changes_nothing():
    assert log_probs(LAW.log()[None], Sampling(temperature=0, xtc_probability=1.0)).argmax() == 0
