"""Heads for multi-token prediction: the text is the target's own, and the head computes what transformers' own does."""

import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.model.heads.text_features import TextFeatures
from offload_runtime.speculation.heads.head_draft import HeadDraft
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.offload_runtime.exactness.drafts.head_texts import (
    NEW_TOKENS,
    OPTIONS,
    long_readings,
    read_texts,
    shared_readings,
    streamed_readings,
)
from tests.samples.mtp_models import FAMILIES, add_head, head_logits, model_with_head, multimodal_with_head, save_known
from tests.samples.multimodal import checkpoints as multimodal
from tests.samples.multimodal.families import is_built
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, make_checkpoint

CLOSE = 2e-3  # of logits up to 10 or so, in float32: recurrent layers and routers of experts make differences larger
every_family = pytest.mark.parametrize("family", FAMILIES)


def difference(directory, text: list[int], logits: torch.Tensor) -> float:
    return (logits - head_logits(directory, text)[-1]).abs().max().item()


@every_family
def test_streamed_text_equals_generate_and_the_head_reads_what_was_accepted(family):
    """The head's logits after every text are those of transformers' own head over that text alone, whatever trees were
    grown and cut in between."""
    directory = model_with_head(family)
    read = streamed_readings(directory, "mtp")
    assert len(read) < NEW_TOKENS - 1, "something is accepted"
    assert max(difference(directory, text, logits) for text, logits in read[::5]) < CLOSE


@pytest.mark.parametrize(
    ("family", "tree"), [*zip(FAMILIES, cycle(("adaptive", "auto"))), ("deepseek_v3", "auto"), ("qwen3_next", "auto")]
)
def test_resident_text_equals_generate(family, tree):
    directory = model_with_head(family)
    with OffloadRuntime.from_pretrained(directory, "mtp", device="cpu", **{**OPTIONS, "tree": tree}) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(directory, PROMPT, NEW_TOKENS)


@pytest.mark.skipif(not is_built("step3p7"), reason="not in the installed transformers")
def test_a_multimodal_model_drafts_with_its_head():
    directory = multimodal_with_head()
    with (
        OffloadRuntime.from_pretrained(directory, "mtp", device="cpu", **OPTIONS) as runtime,
        read_texts(runtime._models.draft) as read,
    ):
        reply = runtime.generate(PROMPT, max_new_tokens=24, temperature=0)
    assert reply.token_ids == multimodal.greedy(directory, PROMPT, 24) and reply.stats.tokens_per_pass > 1
    assert max(difference(directory, text, logits) for text, logits in read[::4]) < CLOSE


def test_a_multimodal_model_whose_head_transformers_cannot_build_is_refused_by_name(tmp_path):
    directory = shutil.copytree(multimodal.checkpoint("glm_ocr"), tmp_path / "model")
    tensors, layers = load_file(directory / "model.safetensors"), "model.language_model.layers."
    last = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(f"{layers}2.")}
    head = {name.replace(f"{layers}2.", f"{layers}3."): tensor for name, tensor in last.items()}
    shapes = {"eh_proj": (32, 64), "enorm": (32,), "hnorm": (32,)}
    head |= {f"{layers}3.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    save_file({**tensors, **head}, directory / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="--draft mtp is not possible for glm_ocr_text models"):
        OffloadRuntime.from_pretrained(directory, "mtp", device="cpu")


def test_a_model_without_a_head_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="no head for multi-token prediction"):
        OffloadRuntime.from_pretrained(checkpoint("llama"), "mtp", device="cpu")


VOCABULARY = 32
CYCLE = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
ROUND = CYCLE[:4].tolist()  # a prompt that goes round it


@pytest.fixture(scope="module")
def by_features(tmp_path_factory) -> Path:
    """A model that goes round a cycle, and a head that sees the features alone: from the token before, it knows which
    token it reads, and so the next one. It is always right, if its features are those of the right row."""
    step = torch.zeros(VOCABULARY, VOCABULARY)
    step[CYCLE.roll(-1), CYCLE] = 1.0
    return save_known(tmp_path_factory.mktemp("cycle"), 9 * step, torch.zeros_like(step), step)


@pytest.mark.parametrize("tree", ["chain", "sequoia", "adaptive"])
def test_a_perfect_head_that_sees_features_alone_has_every_path_accepted(by_features, tree):
    options = {"context_length": 128, "tree": tree, "tree_size": 12 if tree != "chain" else 5, "tree_depth": 4}
    with OffloadRuntime.from_pretrained(by_features, "mtp", device="cpu", **options) as runtime:
        reply = runtime.generate(ROUND, max_new_tokens=41, temperature=0)
        assert reply.token_ids == greedy(by_features, ROUND, 41)
        assert reply.stats.passes == 1 + 8, "the first gives the features, all others five tokens"
        again = runtime.generate(ROUND, max_new_tokens=40, temperature=0)
    assert again.token_ids == reply.token_ids[:40] and again.stats.passes == 8, "the prompt's features are kept"


def test_features_of_the_wrong_row_are_found_out_by_acceptance_and_the_text_stays(by_features, monkeypatch):
    of = TextFeatures.of
    monkeypatch.setattr(TextFeatures, "of", lambda self, begin, count: of(self, max(begin - 1, 0), count))
    with OffloadRuntime.from_pretrained(by_features, "mtp", device="cpu", **OPTIONS) as runtime:
        reply = runtime.generate(ROUND, max_new_tokens=40, temperature=0)
    assert reply.token_ids == greedy(by_features, ROUND, 40)
    assert reply.stats.passes > 30, "with the right ones there are 9; a wrong child may be right by chance"


def test_features_of_drafted_tokens_are_the_heads_own_at_their_parents(by_features, monkeypatch):
    """With those of another node only first children are right: two tokens a pass, not five."""

    def of_the_text(self, tokens, depths, visible, sequence=0):
        part = nodes(self, tokens, depths, visible, sequence)
        return replace(part, features=self.model.outputs[sequence, :1].expand(len(part.tokens), -1))

    nodes = HeadDraft.nodes
    monkeypatch.setattr(HeadDraft, "nodes", of_the_text)
    options = {**OPTIONS, "tree": "chain", "tree_size": 5}
    with OffloadRuntime.from_pretrained(by_features, "mtp", device="cpu", **options) as runtime:
        reply = runtime.generate(ROUND, max_new_tokens=41, temperature=0)
    assert reply.token_ids == greedy(by_features, ROUND, 41)
    assert 1 + 13 <= reply.stats.passes <= 1 + 20


@pytest.mark.parametrize("tree", ["sequoia", "adaptive"])
def test_sampled_texts_follow_the_targets_distribution(tree):
    """The joint distribution of the first three tokens, by chi-square."""
    directory = add_head(make_checkpoint("llama", 9, False, sampling.TINY))
    options = {"device": "cpu", "context_length": 32, "tree": tree, **sampling.BUSHY}
    with OffloadRuntime.from_pretrained(directory, "mtp", **options) as runtime:
        counts, single_passes = sampling.sampled(runtime, range(sampling.TEXTS))
    assert sampling.agreement(counts, sampling.joint_distribution()) > 1e-3
    assert single_passes > 0.02, "trees were drafted and accepted"


@pytest.mark.parametrize("streamed", [False, True])
def test_texts_that_share_passes_are_their_own(streamed):
    directory = model_with_head("mellum")
    for read in shared_readings(directory, "mtp", streamed):
        assert max(difference(directory, text, logits) for text, logits in read[::7]) < CLOSE


def test_long_prompts_are_read_in_pieces_and_the_head_follows():
    directory = model_with_head("mellum")
    whole = long_readings(directory, "mtp")
    assert max(difference(directory, text, logits) for text, logits in whole[::4]) < CLOSE


def test_a_head_that_writes_rows_of_the_target_is_found_out(monkeypatch):
    """The control of the tests above: they see it if drafting touches what the target has cached."""
    directory = model_with_head("mellum")
    with OffloadRuntime.from_pretrained(directory, "mtp", device="cpu", **OPTIONS) as runtime:
        target, run = runtime._models.target.model, HeadDraft.run

        def writes(self, parts):
            for rows in target.cache.tables().values():
                rows[:, 3] = 0.0
            return run(self, parts)

        monkeypatch.setattr(HeadDraft, "run", writes)
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids != greedy(directory, PROMPT, NEW_TOKENS)


def test_planned_memory_is_what_is_used():
    directory = model_with_head("mellum")
    with OffloadRuntime.from_pretrained(directory, "mtp", device="cpu", **OPTIONS, parallel=2) as runtime:
        runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
        items = {item.name: item.device_bytes for item in runtime.plan.items}
        loaded = sum(items.values()) - items["read buffers"]
        assert runtime._models.memory.peak_bytes == loaded
        draft = runtime._models.draft.model
        features = [sequence.features for sequence in runtime._models.target.model.cache.sequences]
        texts, states = [each._kept for each in features], features[0]._states
        buffers = [states.rows, draft.own.rows, draft.outputs, *texts]
        assert items["hidden states for the draft head"] == sum(buffer.nbytes for buffer in buffers)
