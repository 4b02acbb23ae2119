"""On a GPU top-p looks at the likeliest tokens first, and the host learns with the accepted path whether they were
enough.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from offload_runtime.speculation import verification
from offload_runtime.speculation.draft import draft_distribution, joined
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.verification import Scored, verify
from sequoia_tree import Tree, optimal_tree
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.uploads import upload
from sequoia_tree.verification import sampling
from sequoia_tree.verification.sampling import bounded_log_distribution, draw_without_replacement, log_probs
from sequoia_tree.verification.verify import AcceptedPath
from tests.pretend_cuda import PretendCuda, pretend_cuda

CPU, CUDA, VOCABULARY = torch.device("cpu"), torch.device("cuda"), 96
WIDTH = 12
SHARP = Sampling(temperature=0.3, top_p=0.8)  # keeps fewer tokens
FLAT = Sampling(temperature=3.0, top_p=0.95)  # keeps more
TREE = optimal_tree([0.5, 0.2, 0.1, 0.1], 12)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    monkeypatch.setattr(sampling, "_FIRST_GPU_WIDTH", WIDTH)
    with pretend_cuda() as device:
        yield device


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all rows that were looked at, in order."""
    seen, highest = [], sampling._highest

    def noted(scores: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(width)
        return highest(scores, width)

    monkeypatch.setattr(sampling, "_highest", noted)
    return seen


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(TREE.size, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def filled(used: Sampling) -> tuple[Tree, list[int], list[int], torch.Tensor]:
    """The tree with drawn tokens, less the nodes that found none; its nodes in `TREE`, and the log-laws there."""
    distributions = log_probs(logits(1) + 0.5 * logits(2), used)
    tokens, generator = [0] * TREE.size, torch.Generator().manual_seed(3)
    for node, children in enumerate(TREE.children):
        drawn = draw_without_replacement(distributions[node, None], max(len(children), 1), generator)[0].tolist()
        for child, token in zip(children, drawn):
            tokens[child] = token
    tree, kept = TREE.prune([token >= 0 for token in tokens])
    return tree, kept, [tokens[node] for node in kept], distributions[kept]


def accepted_path(used: Sampling, device: torch.device, seed: int) -> tuple[AcceptedPath, float]:
    """And the number that is drawn next."""
    tree, kept, tokens, distributions = filled(used)
    rows = np.arange(tree.size)
    held, scores = (upload(values.numpy(), device) for values in (joined([distributions], used), logits(1)[kept]))
    drawn, generator = DraftTree(tree, tokens, tree.size, rows, held, rows), torch.Generator(device).manual_seed(seed)
    found = verify(Scored.of(drawn, scores, [0], used), "traversal", generator)
    return found, float(torch.rand(1, device=device, generator=generator))


def test_where_few_tokens_are_kept_no_row_is_sorted(cuda, widths):
    accepted_path(SHARP, CUDA, 0)
    assert set(widths[1:]) == {WIDTH}, "after the tree was filled, on the processor"


def test_where_more_are_kept_all_are_looked_at(cuda, widths):
    accepted_path(FLAT, CUDA, 0)
    assert WIDTH in widths and widths[-1] == VOCABULARY


@pytest.mark.parametrize("used", [SHARP, FLAT], ids=["few kept", "many kept"])
def test_verdicts_are_those_of_the_whole_distribution(used, cuda):
    """To the last random number: trying again starts from the same ones."""
    assert [accepted_path(used, CUDA, seed) for seed in range(20)] == [
        accepted_path(used, CPU, seed) for seed in range(20)
    ]


def test_without_the_check_they_are_not(cuda, monkeypatch):
    def trusting(*arguments):
        distribution, enough = bounded_log_distribution(*arguments)
        return distribution, torch.ones_like(enough)

    monkeypatch.setattr(verification, "bounded_log_distribution", trusting)
    assert [accepted_path(FLAT, CUDA, seed) for seed in range(20)] != [
        accepted_path(FLAT, CPU, seed) for seed in range(20)
    ]


@pytest.mark.parametrize("used", [SHARP, FLAT], ids=["few kept", "many kept"])
def test_drafts_are_never_waited_for(used, cuda, widths):
    scores = upload(logits(1).numpy(), CUDA)
    with cuda.counting() as counts:
        distribution = draft_distribution(scores, used, None)
    assert not counts.waits and widths == [WIDTH]
    assert distribution.cpu().exp().sum(-1).allclose(torch.ones(TREE.size))


@pytest.mark.parametrize("used", [SHARP, FLAT, Sampling(top_k=5), Sampling(top_k=5, top_p=0.5, min_p=0.1)], ids=str)
def test_what_is_called_enough_is_the_whole_distribution(used):
    distribution, enough = bounded_log_distribution(logits(1), used, WIDTH)
    assert bool(enough) == (used != FLAT)
    whole = log_probs(logits(1), used)
    assert torch.equal(distribution.isfinite(), whole.isfinite()) == bool(enough)
    assert torch.allclose(distribution, whole, atol=1e-5) == bool(enough)
