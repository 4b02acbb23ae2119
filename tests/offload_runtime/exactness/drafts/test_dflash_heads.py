"""Block drafts: the text is the target's, and a tree's levels are drawn from the places of one block."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loaders.heads.dflash import DflashHead
from loaders.heads.target_facts import TargetFacts
from offload_runtime import OffloadRuntime
from offload_runtime.speculation import methods
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
    drop_improbable,
    joint_distribution,
    sampled,
)
from tests.offload_runtime.exactness.test_sampling_exactness import target as tiny_target
from tests.samples.head_readings import Rows, tapped_states
from tests.samples.head_readings import furthest as furthest_of
from tests.samples.head_samples import change, write_dflash
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, reference

CLOSE = 1e-3
HEADS = {
    "DFlash": {},
    "DFlash that slides": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "DFlash 2": {"second": True, "is_causal": False, "output_multiplier": 0.5, "final_logit_softcapping": 8.0},
    "speculators": {"layout": "speculators", "sample_from_anchor": True},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """The directory and the module of each head."""

    @cache
    def write(name: str) -> tuple[Path, DflashHead]:
        directory = tmp_path_factory.mktemp("head")
        return directory, write_dflash(directory, **HEADS[name])

    return write


@torch.no_grad()
def head_logits(head: DflashHead, directory: Path, text: list[int]) -> Tensor:
    """Of the first place after a text, by one pass of target and head over all of it, [vocab]."""
    model = reference(directory)
    head.share(model.get_input_embeddings(), model.get_output_embeddings())
    rows, length = Rows(), len(text) - 1
    head.absorb(tapped_states(directory, text, head.head.taps), torch.arange(length), rows)
    block = torch.tensor([[text[-1], *[95] * 4]])
    logits = head(block, torch.arange(length, length + 5)[None], past_key_values=rows).logits[0]
    skipped = 0 if head.head.from_anchor else 1
    assert head.states is not None
    first = torch.zeros(1, dtype=torch.int64)
    return head.successors(logits[skipped:], head.states[skipped:], first, block[0, :1])[0]


def furthest(head: DflashHead, directory: Path, read: Readings) -> float:
    """As of `head_readings`, from the head over the text alone."""
    return furthest_of(lambda text: head_logits(head, directory, text), read)


@pytest.mark.parametrize("name", HEADS)
def test_streamed_text_equals_generate_and_the_block_follows_what_was_accepted(name: str, written) -> None:
    directory, head = written(name)
    target = checkpoint("llama")
    assert furthest(head, target, streamed_readings(target, directory)[::6]) < CLOSE


def test_features_of_another_row_are_noticed(written, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, head = written("DFlash")
    target = checkpoint("llama")
    assert furthest(head, target, readings_of_a_wrong_row(target, directory, monkeypatch)) > 100 * CLOSE


@pytest.mark.parametrize(
    ("name", "tree"), [("DFlash", "adaptive"), ("DFlash", "chain"), ("DFlash 2", "auto"), ("DFlash 2", "chain")]
)
def test_resident_text_equals_generate(name: str, tree: str, written) -> None:
    directory, _ = written(name)
    target = checkpoint("qwen3")
    options = {**OPTIONS, "tree": tree, "tree_depth": 7}  # deeper than the block
    with OffloadRuntime.from_pretrained(target, directory, device="cpu", **options) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)


@pytest.fixture(scope="module")
def tiny_heads(tmp_path_factory: pytest.TempPathFactory):
    """Heads for the target whose joint distribution is enumerated; with a block that is not as deep as the tree."""

    @cache
    def write(second: bool) -> Path:
        directory = tmp_path_factory.mktemp("tiny")
        facts = TargetFacts("target", 1, 16, VOCABULARY)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        own = {"mask_token_id": 5, "block_size": 2, "target_layer_ids": [0]}
        selector = {"selector_top_k": 5} if second else {}
        head = write_dflash(directory, second=second, target=facts, vocab_size=VOCABULARY, **sizes, **own, **selector)
        change(directory, **{"norm.weight": 0.3 * head.norm.weight.detach()})  # so that it is often right
        (directory / "acceptance.json").write_text(json.dumps({"positional": [0.4, 0.3, 0.2]}))
        return directory

    return write


@pytest.mark.parametrize(
    ("tree", "second"),
    [("sequoia", False), ("adaptive", False), ("sequoia by traversal", True), ("adaptive", True)],
)
def test_text_follows_the_distribution_of_the_target(tree: str, second: bool, tiny_heads) -> None:
    with OffloadRuntime.from_pretrained(
        tiny_target(), tiny_heads(second), device="cpu", context_length=32, **TREES[tree]
    ) as runtime:
        counts, single_passes = sampled(runtime, range(300))
    assert agreement(counts, joint_distribution()) > 1e-4
    assert 0.05 < single_passes < 0.95


def test_children_that_are_not_drawn_from_their_place_are_found(tiny_heads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "draw_without_replacement", drop_improbable)
    with OffloadRuntime.from_pretrained(
        tiny_target(), tiny_heads(False), device="cpu", context_length=32, **TREES["sequoia"]
    ) as runtime:
        assert_found(runtime, 600)
