"""Heads with known distributions: a step yields the tokens that the acceptance of its tree's children predicts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from offload_runtime import OffloadRuntime
from offload_runtime.speculation.heads.head_draft import HeadDraft
from sequoia_tree import expected_tokens
from sequoia_tree.acceptance.observe import observe_distributions
from tests.samples.head_samples import write_known_eagle3
from tests.samples.mtp_models import save_known

VOCABULARY, TOKENS = 32, 1000
VALUES = 1.2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(5))
TABLE = torch.stack([VALUES.roll(token) for token in range(VOCABULARY)], dim=1)  # the same after every token, but moved
OWN = torch.eye(VOCABULARY)
TREES = {
    "chain": {"tree": "chain", "tree_size": 4, "tree_depth": 3},
    "sequoia": {"tree": "sequoia", "tree_size": 12, "tree_depth": 4},
}


def lean(share: float) -> Tensor:
    """A mixture of the target with what it says after another token; 1: the target itself. Columns have length 1."""
    return OWN * share + OWN.roll(1, dims=0) * (1 - share**2) ** 0.5


def by_child(mixture: Tensor) -> list[float]:
    """The probability that the k-th child is accepted, for children drawn from the head's distribution."""
    p, q = (logits.log_softmax(0).expand(20_000, -1) for logits in (TABLE[:, 0], (TABLE @ mixture)[:, 0]))
    return observe_distributions(p, q, torch.Generator().manual_seed(0)).positional().tolist()


def surplus(kind: str, tree: str, folder: Path, mixture: Tensor, acceptance: list[float]) -> float:
    """Tokens of the steps less those predicted, in standard errors."""
    target = save_known(folder / "target", TABLE, mixture, torch.zeros_like(mixture))
    if kind == "EAGLE-3":
        write_known_eagle3(folder / "head", mixture)
    draft = "mtp" if kind == "MTP" else folder / "head"
    options = {"context_length": 1024, "verification": "top-down", **TREES[tree]}
    with OffloadRuntime.from_pretrained(target, draft, device="cpu", **options) as runtime:
        steps = list(runtime.stream([3, 9], max_new_tokens=TOKENS, temperature=1, seed=1))[:-1]  # the last may be cut
    assert len({step.tree for step in steps}) > 1 and steps[0].tree.size == 1, "the first has no features to go on from"
    over = [len(step.token_ids) - expected_tokens(step.tree, acceptance) for step in steps[1:]]
    mean, spread = torch.tensor(over).mean(), torch.tensor(over).std()
    return (mean / spread * len(over) ** 0.5).item()


@pytest.mark.parametrize("kind", ["MTP", "EAGLE-3"])
@pytest.mark.parametrize("tree", TREES)
def test_tokens_per_pass_are_those_that_the_acceptance_predicts(kind: str, tree: str, tmp_path: Path) -> None:
    mixture = lean(0.85)
    acceptance = by_child(mixture)
    assert 0.5 < acceptance[0] < 0.9 and acceptance[1] > 0.02
    assert abs(surplus(kind, tree, tmp_path, mixture, acceptance)) < 3


def test_a_head_that_leans_otherwise_is_found(tmp_path: Path) -> None:
    assert abs(surplus("EAGLE-3", "sequoia", tmp_path, lean(0.85), by_child(lean(0.95)))) > 5


def test_children_from_another_nodes_distribution_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = HeadDraft.run
    monkeypatch.setattr(HeadDraft, "run", lambda self, parts: [rows.roll(1, dims=0) for rows in run(self, parts)])
    assert surplus("EAGLE-3", "sequoia", tmp_path, lean(0.85), by_child(lean(0.85))) < -5
