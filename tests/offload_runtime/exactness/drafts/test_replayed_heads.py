"""Passes of draft heads as CUDA graphs, on a GPU that only pretends: the head reads and gives what it does without."""

from pathlib import Path
from typing import Any

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.model.heads.head_model import HeadModel
from tests.offload_runtime.exactness.drafts import test_draft_heads as mtp
from tests.offload_runtime.exactness.drafts import test_eagle3_heads as eagle3
from tests.offload_runtime.exactness.drafts.head_texts import read_texts
from tests.pretend_cuda import pretend_cuda
from tests.samples.head_samples import write_dflash, write_eagle3
from tests.samples.mtp_models import model_with_head
from tests.samples.tiny_models import PROMPT, checkpoint, greedy

OPTIONS: dict[str, Any] = {
    **{"tree_size": 12, "tree_depth": 4, "context_length": 64, "dtype": "float32", "kv": "device"},
    "device": "cuda",
}
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(4)]
TOKENS = 12


def differences(kind: str, tree: str, parallel: int, folder: Path) -> list[float]:
    """How far the head's logits after texts are from those of a pass over each text alone; the texts are checked."""
    if kind == "MTP":
        target, draft = model_with_head("mellum"), "mtp"
    else:
        head = write_eagle3(folder, token_ids=torch.arange(0, 96, 2))
        target, draft = checkpoint("llama"), str(folder)
    expected = [greedy(target, prompt, TOKENS) for prompt in PROMPTS]
    with pretend_cuda() as cuda:
        before = cuda.held_bytes
        with (
            OffloadRuntime.from_pretrained(target, draft, tree=tree, parallel=parallel, **OPTIONS) as loaded,
            read_texts(loaded._models.draft) as read,
        ):
            replies = loaded.generate_many(PROMPTS, max_new_tokens=TOKENS, temperature=0)
            assert [reply.token_ids for reply in replies] == expected
            model = loaded._models.draft.model
            assert model.replays and model.padded_total > len(read), "of texts, and of the levels of their trees"
            assert cuda.timeline.peak - before <= loaded.plan.device_bytes
            read = [(text, logits.cpu()) for text, logits in read[::3]]
    if kind == "MTP":
        return [mtp.difference(target, text, logits) for text, logits in read]
    return [eagle3.furthest(head, target, [one]) for one in read]


@pytest.mark.parametrize(
    ("kind", "tree", "parallel"),
    [("MTP", "sequoia", 1), ("MTP", "adaptive", 3), ("EAGLE-3", "sequoia", 3), ("EAGLE-3", "adaptive", 1)],
)
def test_texts_and_what_the_head_computes_stay_the_same(kind: str, tree: str, parallel: int, tmp_path: Path) -> None:
    assert max(differences(kind, tree, parallel, tmp_path)) < eagle3.CLOSE


@pytest.mark.parametrize("parallel", [1, 3])
def test_features_that_a_graph_does_not_see_are_found(
    parallel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the features of the first pass had been captured: those of later ones are not written where it reads."""

    def captured_once(self: HeadModel, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        apart = torch.zeros_like(self._padded_features[: len(tokens)])
        given, self.head.inputs.features = self.head.inputs.features, apart
        try:
            return super(HeadModel, self)._compute_padded(tokens, positions)
        finally:
            self.head.inputs.features = given

    monkeypatch.setattr(HeadModel, "_compute_padded", captured_once)
    assert max(differences("EAGLE-3", "sequoia", parallel, tmp_path)) > 100 * eagle3.CLOSE


def test_a_block_draft_is_not_replayed(tmp_path: Path) -> None:
    write_dflash(tmp_path)
    target = checkpoint("llama")
    with (
        pretend_cuda(),
        OffloadRuntime.from_pretrained(target, tmp_path, tree="sequoia", **OPTIONS) as loaded,
    ):
        reply = loaded.generate(PROMPT, max_new_tokens=TOKENS, temperature=0)
        assert loaded._models.target.model.replays and not loaded._models.draft.model.replays
    assert loaded.plan.graphs == ("target",)
    assert reply.token_ids == greedy(target, PROMPT, TOKENS)
