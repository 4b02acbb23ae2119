"""EAGLE-3 heads in files of their own: the text is the target's, and the head reads what it was trained to read."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loaders.errors import DraftMismatchError, UnsupportedModelError
from loaders.heads.eagle3 import Eagle3Head
from loaders.heads.target_facts import TargetFacts
from offload_runtime import OffloadRuntime
from tests.offload_runtime.exactness.drafts.head_texts import (
    NEW_TOKENS,
    OPTIONS,
    Readings,
    readings_of_a_wrong_row,
    streamed_readings,
)
from tests.offload_runtime.exactness.test_sampling_exactness import (
    TREES,
    VOCABULARY,
    agreement,
    assert_found,
    joint_distribution,
    keep_next_row,
    sampled,
)
from tests.offload_runtime.exactness.test_sampling_exactness import target as tiny_target
from tests.samples.head_readings import furthest as furthest_of
from tests.samples.head_readings import tapped_states
from tests.samples.head_samples import change, write_eagle3
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, reference

CLOSE = 1e-3
IDS = torch.tensor([*range(0, 96, 3), 95])
HEADS = {
    "specforge": {"token_ids": IDS},
    "the target's output layer": {"own_output": False},
    "speculators": {"layout": "speculators", "token_ids": IDS, "norm_before_residual": True},
    "two Qwen3 layers": {"layout": "speculators", "model_type": "qwen3", "num_hidden_layers": 2, "norm_output": True},
    "norms before joining": {"layout": "speculators", "fc_norm": True},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """The directory and the module of each head."""

    @cache
    def write(name: str) -> tuple[Path, Eagle3Head]:
        directory = tmp_path_factory.mktemp("head")
        return directory, write_eagle3(directory, **HEADS[name])

    return write


@torch.no_grad()
def head_logits(head: Eagle3Head, directory: Path, text: list[int]) -> Tensor:
    """After the last token of a text, by one pass of target and head over all of it, [vocab]."""
    model = reference(directory)
    head.share(model.get_input_embeddings(), model.get_output_embeddings())
    features = head.fuse(tapped_states(directory, text, head.head.taps))
    positions = torch.arange(len(text) - 1)
    return head(torch.tensor([text[1:]]), positions[None], features=features[None]).logits[0, -1]


def furthest(head: Eagle3Head, directory: Path, read: Readings) -> float:
    """As of `head_readings`, from the head over the text alone."""
    return furthest_of(lambda text: head_logits(head, directory, text), read)


@pytest.mark.parametrize("name", HEADS)
def test_streamed_text_equals_generate_and_the_head_reads_what_was_accepted(name: str, written) -> None:
    directory, head = written(name)
    target = checkpoint("llama")
    assert furthest(head, target, streamed_readings(target, directory)[::6]) < CLOSE


def test_features_of_another_row_are_noticed(written, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, head = written("specforge")
    target = checkpoint("llama")
    assert furthest(head, target, readings_of_a_wrong_row(target, directory, monkeypatch)) > 100 * CLOSE


@pytest.mark.parametrize(
    ("architecture", "tree"),
    [
        *(("llama", "adaptive"), ("llama", "auto"), ("llama", "chain")),
        *(("qwen3", "adaptive"), ("gemma2", "auto"), ("gpt_oss", "chain")),
    ],
)
def test_resident_text_equals_generate(architecture: str, tree: str, written) -> None:
    directory, _ = written("specforge")
    target = checkpoint(architecture)
    with OffloadRuntime.from_pretrained(target, directory, device="cpu", **{**OPTIONS, "tree": tree}) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)


SHAPED = {"temperature": 0.6, "top_p": 0.9}


@pytest.fixture(scope="module")
def tiny_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head for the target whose joint distribution is enumerated; it cannot propose one of the six tokens."""
    directory = tmp_path_factory.mktemp("tiny")
    facts = TargetFacts("target", 1, 16, VOCABULARY)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = torch.tensor([0, 1, 2, 4, 5])
    head = write_eagle3(directory, token_ids=ids, target=facts, taps=(1, 1, 1), vocab_size=VOCABULARY, **sizes)
    assert head.lm_head is not None
    change(directory, **{"lm_head.weight": 0.2 * head.lm_head.weight.detach()})  # so that it is often right
    (directory / "acceptance.json").write_text(json.dumps({"positional": [0.4, 0.3, 0.2]}))
    return directory


@pytest.mark.parametrize(
    ("tree", "sampling"),
    [("sequoia", {}), ("adaptive", {}), ("sequoia by traversal", SHAPED), ("adaptive", SHAPED)],
    ids=str,
)
def test_text_follows_the_distribution_of_the_target(tree: str, sampling: dict, tiny_head: Path) -> None:
    with OffloadRuntime.from_pretrained(
        tiny_target(), tiny_head, device="cpu", context_length=32, **TREES[tree]
    ) as runtime:
        counts, single_passes = sampled(runtime, range(300), **sampling)
    assert agreement(counts, joint_distribution(**sampling)) > 1e-4
    assert 0.05 < single_passes < 0.95


def test_a_wrong_row_is_found(tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offload_runtime.model.cached_sequence import CachedSequence

    monkeypatch.setattr(CachedSequence, "commit", keep_next_row)
    with OffloadRuntime.from_pretrained(
        tiny_target(), tiny_head, device="cpu", context_length=32, **TREES["sequoia"]
    ) as runtime:
        assert_found(runtime, 600)


def test_a_head_of_another_target_is_refused(written) -> None:
    directory, _ = written("specforge")
    with pytest.raises(DraftMismatchError, match="hidden states of width 32"):
        OffloadRuntime.from_pretrained(checkpoint("llama", hidden_size=64), directory, device="cpu")


def test_a_weight_without_a_place_is_refused(tmp_path: Path) -> None:
    write_eagle3(tmp_path)
    change(tmp_path, **{"extra.weight": torch.zeros(3, 3)})
    with pytest.raises(UnsupportedModelError, match=r"extra\.weight is no weight of the EAGLE-3 head"):
        OffloadRuntime.from_pretrained(checkpoint("llama"), tmp_path, device="cpu")
