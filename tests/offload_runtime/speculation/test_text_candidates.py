"""Continuations taken from the text join the tree, are accepted where they are right, and leave sampling exact."""

import numpy as np
import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.speculation import adaptive_drafting, verification
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.lookup import text_candidates
from offload_runtime.speculation.lookup.text_candidates import Candidates, RepeatedText, with_candidates
from sequoia_tree import Tree
from sequoia_tree.verification.sampling import draw
from sequoia_tree.verification.verify import AcceptedPath
from tests.offload_runtime.exactness import test_sampling_exactness as exactness
from tests.samples.tiny_models import checkpoint, greedy

REPEATING = [3, 1, 2, 0, 5, 5, 4, 3, 1, 2, 0]
OPTIONS = {"device": "cpu", "context_length": 48, "tree": "adaptive", "tree_size": 16, "tree_depth": 2}


def drawn(parents, tokens):
    rows = np.arange(len(tokens))
    return DraftTree(Tree(parents), tokens, len(tokens), rows - 1, torch.zeros(len(tokens), 6), rows)


def test_a_text_that_repeats_itself_is_continued_as_before():
    repeated = RepeatedText()
    assert repeated.candidates([1, 2, 3, 4, 5, 9, 8, 2, 3, 4], 64, 3) == Candidates([], 0), "three tokens are chance"
    text = [1, 2, 3, 4, 5, 9, 8, 7, 2, 3, 4, 5]
    assert repeated.candidates(text, 64, 3) == Candidates([9, 8, 7, 2, 3, 4, 5, 9, 8, 7, 2], 8)
    text += [9, 8]
    assert repeated.candidates(text, 32, 1).tokens == [7, 2, 3, 4, 5], (
        "no more than an eighth of the tree, and its depth"
    )
    assert repeated.candidates(text[:6], 64, 3) == Candidates([], 0), "another text"


def test_candidates_end_with_the_text():
    text = [1, 2, 3, 4, 5, 9, 8, 7, 2, 3, 4, 5]
    assert RepeatedText().candidates(text, 64, 3, frozenset([8])) == Candidates([9, 8], 2)


@pytest.mark.parametrize(
    "tokens, most, parents, chain",
    [
        ([8, 9], 2, [0, 3], [8, 9]),  # none is drawn
        ([5, 8, 9, 1], 2, [1, 3], [8, 9]),  # behind the drawn nodes that agree
        ([5, 7, 9, 1], 3, [2, 3], [9, 1]),
        ([5, 7], 3, [], []),  # all are drawn
        ([], 0, [], []),
    ],
)
def test_candidates_go_on_where_drawn_nodes_end(tokens, most, parents, chain):
    tree = with_candidates(drawn([-1, 0, 1], [4, 5, 7]), Candidates(tokens, most))
    assert tree.tree.parents == [-1, 0, 1, *parents] and tree.tokens == [4, 5, 7, *chain]
    assert tree.drawn == 3 and tree.drawn_part == Tree([-1, 0, 1])
    assert tree.columns[3:].tolist() == tree.distribution_rows[3:].tolist() == [-1] * len(chain)


def test_greedy_text_with_candidates_is_the_targets_own():
    target = checkpoint("llama", seed=3, num_hidden_layers=1)
    prompt = [5, 17, 3, 88, 41, 9, 5, 17, 3, 88]
    with OffloadRuntime.from_pretrained(target, checkpoint("llama", seed=4), **{**OPTIONS, "tree_size": 32}) as runtime:
        steps = list(runtime.stream(prompt, max_new_tokens=24, temperature=0))
    assert [token for step in steps for token in step.token_ids] == greedy(target, prompt, 24)


@pytest.fixture
def repeating(monkeypatch):
    """A tree of one drawn node and two candidates, so that these are often reached."""
    monkeypatch.setattr(exactness, "PROMPT", REPEATING)
    monkeypatch.setattr(text_candidates, "_SHARE", 2)
    with OffloadRuntime.from_pretrained(
        exactness.target(), exactness.draft(), **{**OPTIONS, "tree_size": 4}
    ) as runtime:
        yield runtime


def test_sampled_text_with_candidates_follows_the_distribution_of_the_target(repeating, monkeypatch):
    joined = []

    def counted(tree, candidates):
        joined.append(with_candidates(tree, candidates))
        return joined[-1]

    monkeypatch.setattr(adaptive_drafting, "with_candidates", counted)
    counts, _ = exactness.sampled(repeating, range(300))
    assert exactness.agreement(counts, exactness.joint_distribution()) > 1e-4
    assert sum(tree.tree.size > tree.drawn for tree in joined) > 225


def test_candidates_that_are_accepted_without_a_match_are_found(repeating, monkeypatch):
    def accept_unseen(tree, tokens, accepted_path, nodes, distributions, generator):
        child = next((node for node in nodes if tree.parents[node] == accepted_path.last), None)
        if child is None:
            return accepted_path
        return AcceptedPath(
            [*accepted_path.path, child], draw(distributions.target(torch.tensor([child]))[0], generator)
        )

    monkeypatch.setattr(verification, "follow", accept_unseen)
    exactness.assert_found(repeating, 300)
