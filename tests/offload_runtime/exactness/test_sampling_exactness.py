"""Sampled text follows exactly the distribution of the target alone.

A vocabulary of six tokens is small enough to enumerate the joint distribution of the first three with transformers. The
whole runtime then writes three tokens with thousands of seeds; the counts must fit that distribution, and must not fit
it any more when one rule of exactness is broken. The trees are two levels deep, so that three tokens often take a bonus
token and a second pass over what the first one left in the caches.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from offload_runtime import OffloadRuntime
from offload_runtime.generation.decode import Decoder
from offload_runtime.model.cached_sequence import CachedSequence
from offload_runtime.speculation import adaptive_drafting, methods
from offload_runtime.speculation.static_drafting import likeliest
from sequoia_tree.drafting.priorities import DrawnCosts
from sequoia_tree.verification.sampling import draw_without_replacement
from tests.chi_square import p_value
from tests.samples.tiny_models import checkpoint, reference

PROMPT, TOKENS, VOCABULARY = [3, 1], 3, 6
# Per setting, each about 10 ms; for the whole distribution, and where sampling cuts or bends it.
TEXTS, SHAPED_TEXTS = 400, 200
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "rope_parameters": None,
}
BUSHY = {"tree_size": 6, "tree_depth": 2}
TREES = {
    "none": {"tree": "none"},
    "chain": {"tree": "chain", "tree_size": 3, "tree_depth": 2},
    "chains": {"tree": "chains", **BUSHY},
    "sequoia": {"tree": "sequoia", **BUSHY},
    "sequoia by traversal": {"tree": "sequoia", "verification": "traversal", **BUSHY},
    "sequoia by match": {"tree": "sequoia", "verification": "match", **BUSHY},
    "specinfer": {"tree": "specinfer", **BUSHY},
    "topk": {"tree": "topk", **BUSHY},
    "adaptive": {"tree": "adaptive", **BUSHY},
    "adaptive by ratio tests": {"tree": "adaptive", "verification": "top-down", **BUSHY},
    "auto": {"tree": "auto", **BUSHY},
}


def target() -> Path:
    return checkpoint("llama", seed=9, **TINY)


def draft() -> Path:
    """Another random model; its acceptances put three children under the root of a tree of six."""
    directory = checkpoint("llama", seed=10, **TINY)
    (directory / "acceptance.json").write_text(json.dumps({"positional": [0.4, 0.3, 0.2]}))
    return directory


@pytest.fixture(scope="module")
def runtimes():
    """One runtime per tree kind: the prefix cache makes a further text of the same prompt cheap."""
    opened = {}

    def runtime(tree: str) -> OffloadRuntime:
        if tree not in opened:
            options = {"device": "cpu", "context_length": 32, **TREES[tree]}
            opened[tree] = OffloadRuntime.from_pretrained(target(), draft(), **options)
            if tree == "auto":  # else texts by a seed would have no trees, with all on a processor
                opened[tree]._decoder._policy._streams = True
        return opened[tree]

    yield runtime
    for runtime in opened.values():
        runtime.close()


def shaped(logits, seen, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """The distribution that generate's processors make of one row of logits, written down anew."""
    scores = np.array(logits, dtype=np.float64)
    for token in set(seen):
        scores[token] *= repetition_penalty if scores[token] < 0 else 1 / repetition_penalty
    distribution = np.exp((scores - scores.max()) / temperature)
    order = np.argsort(-distribution)
    if top_k:
        distribution[order[top_k:]] = 0
    distribution /= distribution.sum()
    likelier = np.cumsum(distribution[order]) - distribution[order]  # the mass before each token
    distribution[order[likelier >= top_p]] = 0
    distribution[distribution < min_p * distribution.max()] = 0
    return distribution / distribution.sum()


@cache
def logits_after(text: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        return reference(target())(torch.tensor([text])).logits[0, -1].tolist()


def joint_distribution(**sampling) -> torch.Tensor:
    """Probability of every continuation, [VOCABULARY] * TOKENS."""
    distribution = np.ones([VOCABULARY] * TOKENS)
    for tokens in product(range(VOCABULARY), repeat=TOKENS):
        for i in range(TOKENS):
            text = (*PROMPT, *tokens[:i])
            distribution[tokens] *= shaped(logits_after(text), text, **sampling)[tokens[i]]
    return torch.from_numpy(distribution)


def sampled(runtime: OffloadRuntime, seeds: Sequence[int], **sampling) -> tuple[torch.Tensor, float]:
    """How often each continuation was written, [VOCABULARY] * TOKENS, and in which share of the texts by one pass."""
    counts, single_passes = torch.zeros([VOCABULARY] * TOKENS, dtype=torch.int64), 0
    for seed in seeds:
        reply = runtime.generate(PROMPT, max_new_tokens=TOKENS, seed=seed, **{"temperature": 1.0, **sampling})
        counts[tuple(reply.token_ids)] += 1
        single_passes += reply.stats.passes == 1
    return counts, single_passes / len(seeds)


def assert_found(runtime: OffloadRuntime, most: int) -> None:
    """Texts show before there are `most` that they do not follow the distribution."""
    distribution = joint_distribution()
    assert shows(lambda seeds: sampled(runtime, seeds)[0], lambda counts: agreement(counts, distribution), most)


def shows(counted: Callable[[range], Tensor], chance: Callable[[Tensor], float], most: int) -> bool:
    """Whether the counts of up to `most` seeds, looked at by fifties, have a chance below 1e-8: too small for luck."""
    counts: Tensor | int = 0
    for seed in range(0, most, 50):
        counts = counts + counted(range(seed, min(seed + 50, most)))
        if chance(counts) < 1e-8:
            return True
    return False


def agreement(counts: torch.Tensor, distribution: torch.Tensor) -> float:
    """Upper bound (Bonferroni) on the chance of a deviation as large, over the joint distribution and all its
    marginals.
    """
    marginals = [places for size in range(1, TOKENS) for places in combinations(range(TOKENS), size)]
    values = [
        p_value(counts, distribution),
        *(p_value(counts.sum(places), distribution.sum(places)) for places in marginals),
    ]
    return min(1.0, len(values) * min(values))


def distribution_of(model: Path) -> Tensor:
    """The joint distribution of the first tokens of any model of this vocabulary, by transformers alone."""
    distribution = torch.ones([VOCABULARY] * TOKENS, dtype=torch.float64)
    for tokens in product(range(VOCABULARY), repeat=TOKENS):
        for place in range(TOKENS):
            with torch.inference_mode():
                text = torch.tensor([[*PROMPT, *tokens[:place]]])
                logits = reference(model)(text, use_cache=False).logits[0, -1].double()
            distribution[tokens] *= logits.softmax(-1)[tokens[place]]
    return distribution


def assert_follows(model: Path) -> None:
    """That texts of a model, with trees of the draft, follow its own distribution."""
    options = {"device": "cpu", "context_length": 32, **TREES["sequoia by traversal"]}
    with OffloadRuntime.from_pretrained(model, draft(), **options) as runtime:
        counts, single_passes = sampled(runtime, range(400))
    assert agreement(counts, distribution_of(model)) > 1e-4
    assert 0.05 < single_passes < 0.95


SAMPLINGS = [
    ("none", {}),
    ("chain", {"temperature": 0.6, "top_p": 0.9}),
    ("sequoia", {}),
    ("sequoia", {"temperature": 0.6}),
    ("sequoia", {"top_p": 0.9}),
    ("sequoia", {"temperature": 1.5, "top_k": 4, "min_p": 0.3}),
    ("sequoia", {"repetition_penalty": 2.0}),
    ("sequoia by traversal", {}),
    ("sequoia by traversal", {"temperature": 0.6, "top_p": 0.9}),
    ("sequoia by match", {"temperature": 0.6, "top_p": 0.9}),
    ("specinfer", {}),
    ("specinfer", {"temperature": 0.6, "top_p": 0.9}),
    ("topk", {"temperature": 0.6, "top_p": 0.9}),
    ("adaptive", {}),
    ("adaptive", {"temperature": 0.6, "top_p": 0.9}),
    ("adaptive", {"repetition_penalty": 2.0}),
    ("adaptive by ratio tests", {}),
    ("auto", {"temperature": 0.6}),
]


@pytest.mark.parametrize("tree, sampling", SAMPLINGS, ids=str)
def test_text_follows_the_distribution_of_the_target(tree, sampling, runtimes):
    counts, single_passes = sampled(runtimes(tree), range(SHAPED_TEXTS if sampling else TEXTS), **sampling)
    assert agreement(counts, joint_distribution(**sampling)) > 1e-4
    assert tree == "none" or 0.05 < single_passes < 0.95, "both are to be covered: whole paths, and second passes"


def drop_improbable(distributions, count, generator):
    tokens = draw_without_replacement(distributions, count, generator)
    return tokens.masked_fill(distributions.exp().gather(-1, tokens.clamp(min=0)) < 0.25, -1)


def most_likely(distributions, count, generator):
    return likeliest(distributions, count, generator)


def keep_next_row(text, rows, commit=CachedSequence.commit):
    """As when the last accepted row was overwritten before the path was gathered."""
    last = text.end - text.length - 1
    commit(text, [*rows[:-1], min(rows[-1] + 1, last)] if rows else rows)


def step_with_old_numbers(decoder, writers, in_pieces, step=Decoder.step):
    for writer in writers:
        writer.request.generator.manual_seed(writer.request.generator.initial_seed())
    return step(decoder, writers, in_pieces)


def cost_of_the_token_itself(costs, distribution, tokens):
    return -distribution.gather(-1, tokens.clamp(min=0))


DRAW, COMMIT, STEP = "draw_without_replacement", (CachedSequence, "commit"), (Decoder, "step")
MISTAKES = [
    ("sequoia", (methods, DRAW), drop_improbable),
    ("sequoia", (methods, DRAW), most_likely),
    ("sequoia", COMMIT, keep_next_row),
    ("sequoia", STEP, step_with_old_numbers),
    ("sequoia by traversal", (methods, DRAW), drop_improbable),
    ("sequoia by traversal", (methods, DRAW), most_likely),
    ("specinfer", (methods, "draw_with_replacement"), most_likely),
    ("adaptive", (adaptive_drafting, DRAW), drop_improbable),
    ("adaptive", (adaptive_drafting, DRAW), most_likely),
    ("adaptive", (DrawnCosts, "__call__"), cost_of_the_token_itself),
    ("adaptive", COMMIT, keep_next_row),
    ("adaptive", STEP, step_with_old_numbers),
]


@pytest.mark.parametrize("tree, place, mistake", MISTAKES, ids=lambda value: getattr(value, "__name__", None))
def test_mistakes_are_found(tree, place, mistake, monkeypatch):
    """Each mistake is made by a runtime of its own: how a method draws is settled when it is made."""
    monkeypatch.setattr(*place, mistake)
    monkeypatch.setitem(methods.DRAWINGS, "specinfer", methods.draw_with_replacement)
    with OffloadRuntime.from_pretrained(target(), draft(), device="cpu", context_length=32, **TREES[tree]) as runtime:
        assert_found(runtime, 600)


@pytest.mark.parametrize("half_noise", [False, True])
def test_unlikely_tokens_need_fine_noise(half_noise, monkeypatch):
    """A tenth of a distribution over 32,000 tokens lies beyond its first thousand; noise on a float16 grid hardly
    reaches it.
    """
    if half_noise:
        rand = torch.rand
        grid = lambda *size, **options: (rand(*size, **options) * 2048).floor().add(0.5) / 2048  # noqa: E731
        monkeypatch.setattr(torch, "rand", grid)
    distribution = (torch.arange(32_000) + 1.0).pow(-1.2).log().log_softmax(-1)
    tail = distribution[1000:].exp().sum()
    tokens = draw_without_replacement(distribution.expand(400, -1), 1, torch.Generator().manual_seed(0))
    counts = torch.tensor([(tokens < 1000).sum(), (tokens >= 1000).sum()])
    assert tail > 0.1
    value = p_value(counts, torch.stack((1 - tail, tail)))
    assert value < 1e-8 if half_noise else value > 1e-4
