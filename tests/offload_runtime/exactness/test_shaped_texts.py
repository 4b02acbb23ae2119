"""Sampled text under a generation config's rules, and under penalties of our own, follows their joint distribution
exactly.

Everything is as in test_sampling_exactness.py; the distribution comes from transformers' own processors.
"""

import json
import shutil
from itertools import product

import pytest
import torch

from offload_runtime import OffloadRuntime
from sequoia_tree.shaping.contexts import Contexts, Text
from tests.generation_configs import processors
from tests.offload_runtime.exactness.test_sampling_exactness import (
    PROMPT,
    SHAPED_TEXTS,
    TOKENS,
    TREES,
    VOCABULARY,
    agreement,
    draft,
    logits_after,
    sampled,
    shows,
    target,
)
from tests.sequoia_tree.shaping.test_penalties import repeated_before

FIELDS = {
    "sequence_bias": [[[1, 4], 1.5], [[4, 4], 2.0], [[2], -0.5]],
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[0, 5], [3, 3]],
    "begin_suppress_tokens": [0],
    "temperature": 0.9,
    "typical_p": 0.97,
}
PENALTIES = {
    "presence_penalty": 1.0,
    "frequency_penalty": 0.5,
    "dry_multiplier": 1.5,
    "dry_allowed_length": 1,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    copy = shutil.copytree(target(), tmp_path_factory.mktemp("configured") / "model")
    (copy / "generation_config.json").write_text(json.dumps({"do_sample": True, **FIELDS}))
    return copy


def joint(next_token):
    """Probability of every continuation, [VOCABULARY] * TOKENS, from that of the next token after a text."""
    distribution = torch.ones([VOCABULARY] * TOKENS, dtype=torch.float64)
    for length in range(TOKENS):
        for tokens in product(range(VOCABULARY), repeat=length):
            distribution[tokens] *= next_token([*PROMPT, *tokens]).double().view(-1, *[1] * (TOKENS - length - 1))
    return distribution


def by_transformers(text):
    built = processors(FIELDS, PROMPT, [], len(PROMPT) + TOKENS)
    return built(torch.tensor([text]), torch.tensor([logits_after(tuple(text))])).softmax(-1)[0]


def by_definition(text):
    """Presence, frequency and DRY penalties as numbers, XTC as its two cases."""
    scores, reply = torch.tensor(logits_after(tuple(text))), text[len(PROMPT) :]
    for token in set(reply):
        scores[token] -= 0.5 * reply.count(token) + 1.0
    for token, length in repeated_before(text, ()).items():
        scores[token] -= 1.5 * 1.75 ** (length - 1)
    distribution = scores.softmax(-1)
    without = distribution.clone()
    likely = [token for token in distribution.argsort(descending=True).tolist() if distribution[token] >= 0.2]
    without[likely[:-1]] = 0
    return 0.5 * distribution + 0.5 * without / without.sum()


def runtime_of(model, tree):
    if tree == "repeated text":
        return OffloadRuntime.from_pretrained(model, "auto", device="cpu", context_length=32)
    return OffloadRuntime.from_pretrained(model, draft(), device="cpu", context_length=32, **TREES[tree])


SHAPED_TREES = [
    *("none", "chain", "sequoia", "sequoia by traversal", "sequoia by match", "specinfer", "topk"),
    *("adaptive", "adaptive by ratio tests", "repeated text"),
]


@pytest.mark.parametrize("tree", SHAPED_TREES)
def test_a_generation_config_shapes_the_distribution(tree, model):
    with runtime_of(model, tree) as runtime:
        counts, _ = sampled(runtime, range(SHAPED_TEXTS), temperature=None)
    assert agreement(counts, joint(by_transformers)) > 1e-4


@pytest.mark.parametrize("tree", ["sequoia", "sequoia by traversal", "adaptive", "specinfer", "repeated text"])
def test_penalties_and_xtc_shape_the_distribution(tree):
    with runtime_of(target(), tree) as runtime:
        counts, _ = sampled(runtime, range(SHAPED_TEXTS), **PENALTIES)
    assert agreement(counts, joint(by_definition)) > 1e-4


@pytest.mark.parametrize("tree", ["sequoia by traversal", "adaptive"])
def test_nodes_shaped_by_the_text_alone_are_found_out(tree, model, monkeypatch):
    """The negative control: without its path a node has the distribution of another text."""

    def without_paths(text, ancestors, tokens, depth):
        nodes = len(ancestors)
        return Contexts(text, tokens.new_empty(nodes, 0), tokens.new_zeros(nodes))

    monkeypatch.setattr(Text, "at", without_paths)
    with runtime_of(model, tree) as runtime:
        distribution = joint(by_transformers)
        assert shows(
            lambda seeds: sampled(runtime, seeds, temperature=None)[0],
            lambda counts: agreement(counts, distribution),
            SHAPED_TEXTS,
        )
