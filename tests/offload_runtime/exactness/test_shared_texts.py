"""Texts that share passes: each is written as if it were alone, and independently of the others."""

import random
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
import torch

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.generation.sequences import LEAST_COPIED
from offload_runtime.model import pass_part
from offload_runtime.model.cached_sequence import CachedSequence
from offload_runtime.model.kv_cache import TreeCache
from offload_runtime.model.pass_part import PassPart
from offload_runtime.model.rows import SharedRows
from offload_runtime.speculation.lookup.ngram_lookup import NgramTrees
from tests.chi_square import p_value
from tests.offload_runtime.exactness import test_sampling_exactness as alone
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

NEW_TOKENS, TEXTS, PLACES = 18, 8, 4
PROMPTS = [[*PROMPT[: 3 + number], *([9] * (5 * (number % 3))), 7 + number] for number in range(TEXTS)]
ALIKE = [*PROMPT, *range(20, 50)]
PROMPTS_ALIKE = [[*ALIKE, 60 + number] for number in range(PLACES)]
TREE = {"context_length": 64, "tree_size": 6, "tree_depth": 3, "parallel": PLACES}


def runtime(tree: str, architecture: str = "llama", streamed: bool = True) -> OffloadRuntime:
    target = checkpoint(architecture)
    draft = "auto" if tree == "ngram" else perturbed(target, 0.02)  # none is known: n-gram lookup
    options = {**TREE, "tree": "auto" if tree == "ngram" else tree}
    if streamed:
        return streaming_runtime(target, draft, **options)
    return OffloadRuntime.from_pretrained(target, draft, device="cpu", **options)


def written(runtime: OffloadRuntime, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The greedy texts, which join and leave at random and end after 1 to `NEW_TOKENS` tokens."""
    dice, texts = random.Random(0), []
    with runtime.shared_passes() as passes:
        waiting = [
            GenerationRequest.of(prompt, max_new_tokens=1 + dice.randrange(NEW_TOKENS), temperature=0)
            for prompt in prompts
        ]
        while waiting or passes.texts:
            while waiting and passes.free and (not passes.texts or dice.random() < 0.5):
                texts.append(passes.add(waiting.pop(0)))
            passes.step()
    return [text.reply.token_ids for text in texts]


def assert_own_texts(runtime: OffloadRuntime, architecture: str = "llama") -> None:
    for _ in range(2):  # the second time the prompts lie in the caches
        for prompt, text in zip(PROMPTS, written(runtime, PROMPTS)):
            assert text == greedy(checkpoint(architecture), prompt, NEW_TOKENS)[: len(text)]


@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "auto", "none", "ngram"])
@pytest.mark.parametrize("streamed", [False, True])
def test_greedy_texts_that_join_and_leave_at_random_are_their_own(tree: str, streamed: bool) -> None:
    with runtime(tree, streamed=streamed) as loaded:
        assert loaded.parallel == PLACES and isinstance(loaded._decoder._policy, NgramTrees) == (tree == "ngram")
        assert_own_texts(loaded)


def to_a_neighbour(cache: TreeCache, rows: SharedRows, sequences: Sequence[CachedSequence]) -> torch.Tensor:
    """As if the keys of each text were written to the rows of the next, which attends to them then."""
    places = [
        np.arange(after.first_row + own.end, after.first_row + own.end + text.count)
        for text, own, after in zip(rows.texts, sequences, [*sequences[1:], sequences[0]])
    ]
    return torch.from_numpy(np.concatenate(places))


@pytest.mark.parametrize("tree", ["sequoia", "none"])
def test_rows_that_see_a_neighbour_are_found(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeCache, "_places_of", to_a_neighbour)
    with runtime(tree) as loaded, pytest.raises(AssertionError):
        assert_own_texts(loaded)


def test_passes_are_shared() -> None:
    """Counted where they are run: about as many passes as one text has, not as all have together."""
    with runtime("none") as loaded:
        requests = [GenerationRequest.of(prompt, max_new_tokens=10, temperature=0) for prompt in PROMPTS[:PLACES]]
        begun = loaded._models.target.model.layers_begun
        steps = list(loaded.stream_many(requests))
        passes = (loaded._models.target.model.layers_begun - begun) / loaded._models.target.model.layers
    assert sum(len(step.token_ids) for _, step in steps) == 10 * PLACES
    assert passes <= 11  # one more may be needed to read the prompts


def test_a_long_prompt_takes_no_more_of_a_pass_than_it_has_room_for() -> None:
    """The text beside it gets tokens in every pass meanwhile."""
    long = [*PROMPT, *([11, 12, 13] * 14)]
    with runtime("sequoia") as loaded, loaded.shared_passes() as passes:
        assert len(long) > loaded.plan.rows
        beside = passes.add(GenerationRequest.of(PROMPTS[0], max_new_tokens=30, temperature=0))
        passes.step()
        reader = passes.add(GenerationRequest.of(long, max_new_tokens=4, temperature=0))
        reading = 0
        while not reader.reply.token_ids:
            begun, before = loaded._models.target.model.layers_begun, len(beside.reply.token_ids)
            passes.step()
            assert loaded._models.target.model.layers_begun - begun == loaded._models.target.model.layers
            assert len(beside.reply.token_ids) > before
            reading += 1
        while passes.texts:
            passes.step()
    assert reading > 1 and reader.reply.stats.prompt_tokens_read == len(long)
    assert reader.reply.token_ids == greedy(checkpoint("llama"), long, 4)
    assert beside.reply.token_ids == greedy(checkpoint("llama"), PROMPTS[0], 30)


def test_texts_that_begin_alike_read_it_once() -> None:
    with runtime("sequoia") as loaded:
        replies = loaded.generate_many(PROMPTS_ALIKE, max_new_tokens=4, temperature=0)
    assert sum(reply.stats.prompt_tokens_read for reply in replies) <= len(ALIKE) + 1 + (PLACES - 1) * (
        LEAST_COPIED + 1
    )
    for prompt, reply in zip(PROMPTS_ALIKE, replies):
        assert reply.token_ids == greedy(checkpoint("llama"), prompt, 4)


# The sampled distribution


# Verified top-down, by traversal and by match: each rule once.
@pytest.fixture(scope="module", params=["sequoia", "adaptive", "none"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, OffloadRuntime]]:
    options = {"device": "cpu", "context_length": 32, "parallel": 2, **alone.TREES[request.param]}
    with OffloadRuntime.from_pretrained(alone.target(), alone.draft(), **options) as loaded:
        yield request.param, loaded


def sampled_pairs(runtime: OffloadRuntime, numbers: range, **sampling: float) -> torch.Tensor:
    """How often each pair of texts was written together: [VOCABULARY] * 2 TOKENS."""
    counts = torch.zeros([alone.VOCABULARY] * 2 * alone.TOKENS, dtype=torch.int64)
    for number in numbers:
        requests = [
            GenerationRequest.of(
                alone.PROMPT, max_new_tokens=alone.TOKENS, seed=2 * number + text, **{"temperature": 1.0, **sampling}
            )
            for text in range(2)
        ]
        with runtime.shared_passes() as passes:
            texts = [passes.add(request) for request in requests]
            while passes.texts:
                passes.step()
        counts[tuple(token for text in texts for token in text.reply.token_ids)] += 1
    return counts


def agreement(counts: torch.Tensor, distribution: torch.Tensor) -> float:
    """Bonferroni's bound over each text's own distribution and every token of one with every token of the other."""
    tokens = alone.TOKENS
    first, second = range(tokens), range(tokens, 2 * tokens)
    values = [p_value(counts.sum([*second]), distribution), p_value(counts.sum([*first]), distribution)]
    for a, b in product(first, second):
        others = [place for place in range(2 * tokens) if place not in (a, b)]
        of_a = distribution.sum([place for place in range(tokens) if place != a])
        of_b = distribution.sum([place for place in range(tokens) if place != b - tokens])
        values.append(p_value(counts.sum(others), torch.outer(of_a, of_b)))
    return min(1.0, len(values) * min(values))


def test_two_texts_follow_the_distribution_and_are_independent(pair: tuple[str, OffloadRuntime]) -> None:
    _, loaded = pair
    assert agreement(sampled_pairs(loaded, range(250)), alone.joint_distribution()) > 1e-4


def test_texts_that_depend_on_each_other_are_found(pair: tuple[str, OffloadRuntime], monkeypatch) -> None:
    """The second text is verified with the logits of the first."""
    _, loaded = pair

    def of_the_first(model, parts: Sequence[PassPart]) -> Sequence[torch.Tensor]:
        logits = list(run(model, parts))
        if len(logits) == 2 and logits[0].shape == logits[1].shape:
            logits[1] = logits[0].roll(1, -1)
        return logits

    run = pass_part.run_together
    monkeypatch.setattr(pass_part, "run_together", of_the_first)
    distribution = alone.joint_distribution()
    assert alone.shows(
        lambda numbers: sampled_pairs(loaded, numbers), lambda counts: agreement(counts, distribution), 250
    )
