"""No tree has a node behind an end token, and sampled texts near their ends follow the target's distribution exactly.

As in `test_sampling_exactness`, with one of the six tokens ending the text: texts of up to three tokens are counted,
the end token standing for all places behind it.
"""

from itertools import product

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.speculation import adaptive_drafting, methods
from offload_runtime.speculation.target import Target
from sequoia_tree.drafting.adaptive import Frontier
from sequoia_tree.verification.sampling import draw_without_replacement
from tests.offload_runtime.exactness.test_sampling_exactness import (
    PROMPT,
    TOKENS,
    TREES,
    VOCABULARY,
    agreement,
    draft,
    joint_distribution,
    shows,
    target,
)

END, TEXTS = 1, 300  # a token that the draft proposes often; the prompt ends in it, which ends nothing
KINDS = ["chain", "sequoia", "sequoia by traversal", "specinfer", "topk", "adaptive", "narrow"]
SAMPLINGS = [*((kind, {}) for kind in KINDS), ("adaptive", {"temperature": 0.6}), ("auto", {"temperature": 0.6})]
NARROW = {"tree": "adaptive", "tree_size": 5, "tree_depth": 4}  # expansion steps of one node


def distribution_with_ends(**sampling) -> torch.Tensor:
    """Probability of every text, [VOCABULARY] * TOKENS, with END in all places behind an END."""
    whole = joint_distribution(**sampling)
    ended = torch.zeros_like(whole)
    for tokens in product(range(VOCABULARY), repeat=TOKENS):
        ended[filled_up(up_to(tokens))] += whole[tokens]
    return ended


def up_to(tokens):
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def filled_up(tokens) -> tuple[int, ...]:
    return (*tokens, *[END] * (TOKENS - len(tokens)))


class Seen:
    """The trees that the target has scored, and those of first passes."""

    def __init__(self, monkeypatch):
        self.trees, self.first = [], []
        tree_part = Target.tree_part

        def noted(target, text, drawn, *rest):
            self.trees.append(drawn)
            self.first += [drawn] if len(text) == len(PROMPT) else []
            return tree_part(target, text, drawn, *rest)

        monkeypatch.setattr(Target, "tree_part", noted)

    def ended(self) -> int:
        """Nodes other than roots that hold END."""
        return sum(drawn.tokens[1:].count(END) for drawn in self.trees)

    def behind(self) -> int:
        """Nodes whose parent, not a root, holds END."""
        parents = ((drawn, parent) for drawn in self.trees for parent in drawn.tree.parents[1:])
        return sum(parent > 0 and drawn.tokens[parent] == END for drawn, parent in parents)


def opened(options) -> OffloadRuntime:
    runtime = OffloadRuntime.from_pretrained(target(), draft(), device="cpu", context_length=32, **options)
    if options["tree"] == "auto":
        runtime._decoder._policy._streams = True
    return runtime


def counted(runtime: OffloadRuntime, seeds, **arguments) -> torch.Tensor:
    counts = torch.zeros([VOCABULARY] * TOKENS, dtype=torch.int64)
    for seed in seeds:
        asked = {"temperature": 1.0, "end_token_ids": [END], **arguments}
        counts[filled_up(runtime.generate(PROMPT, max_new_tokens=TOKENS, seed=seed, **asked).token_ids)] += 1
    return counts


@pytest.mark.parametrize("kind, sampling", SAMPLINGS, ids=str)
def test_texts_follow_the_distribution_up_to_their_ends(kind, sampling, monkeypatch):
    seen = Seen(monkeypatch)
    with opened({**TREES, "narrow": NARROW}[kind]) as runtime:
        counts = counted(runtime, range(TEXTS), **sampling)
    assert agreement(counts, distribution_with_ends(**sampling)) > 1e-4
    assert seen.ended() > 20 and seen.behind() == 0


def test_an_end_that_is_not_allowed_yet_is_not_drafted(monkeypatch):
    """min_new_tokens keeps it out of both distributions, so the tree grows on where it would have stood."""
    seen = Seen(monkeypatch)
    with opened(TREES["adaptive"]) as runtime:
        counts = counted(runtime, range(50), min_new_tokens=TOKENS)
    assert counts.sum() == 50 and not counts[END].any() and not counts[:, END].any()
    assert len(seen.first) == 50 and all(END not in drawn.tokens[1:] for drawn in seen.first)
    assert all(drawn.tree.size == 6 for drawn in seen.first)


def test_without_end_tokens_trees_grow_behind_them(monkeypatch):
    seen = Seen(monkeypatch)
    with opened(TREES["adaptive"]) as runtime:
        counted(runtime, range(50), end_token_ids=[])
    assert seen.behind() > 20


def test_freed_nodes_go_elsewhere_in_an_adaptive_tree_only(monkeypatch):
    for kind, filled in (("adaptive", True), ("sequoia", False)):
        seen = Seen(monkeypatch)
        with opened(TREES[kind]) as runtime:
            counted(runtime, range(50))
        first_level = [drawn for drawn in seen.trees if END in drawn.tokens[1:4]]
        assert first_level
        assert all(drawn.tree.size == 6 for drawn in first_level) is filled


def drop_ends(distributions, count, generator):
    """As if an end token were not worth a node."""
    tokens = draw_without_replacement(distributions, count, generator)
    return tokens.masked_fill(tokens == END, -1)


def reject_ends_too(frontier: Frontier, count: int, best=Frontier.best):
    """As if ends were dropped once they need not be expanded."""
    frontier._slots.masked_fill_(frontier._offers == END, -torch.inf)
    return best(frontier, count)


DRAW = "draw_without_replacement"
MISTAKES = [
    ("sequoia", (methods, DRAW), drop_ends),
    ("sequoia by traversal", (methods, DRAW), drop_ends),
    ("adaptive", (adaptive_drafting, DRAW), drop_ends),
    ("adaptive", (Frontier, "best"), reject_ends_too),
]


@pytest.mark.parametrize("kind, place, mistake", MISTAKES, ids=lambda value: getattr(value, "__name__", None))
def test_leaving_out_the_ends_themselves_is_found(kind, place, mistake, monkeypatch):
    monkeypatch.setattr(*place, mistake)
    with opened(TREES[kind]) as runtime:
        distribution = distribution_with_ends()
        assert shows(lambda seeds: counted(runtime, seeds), lambda counts: agreement(counts, distribution), 600)
