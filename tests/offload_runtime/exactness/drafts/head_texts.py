"""Texts of a target with a head that drafts: they are the target's own, and what the head read is handed out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from offload_runtime import OffloadRuntime
from offload_runtime.model.heads.text_features import TextFeatures
from offload_runtime.speculation.heads.head_draft import HeadDraft
from tests.offload_runtime.exactness import test_shared_texts as shared
from tests.samples.tiny_models import PROMPT, greedy, streaming_runtime

NEW_TOKENS = 64
OPTIONS: dict[str, Any] = {"context_length": 128, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
Readings = list[tuple[list[int], Tensor]]
"""Texts as far as the target had read them, with the logits that a head gave after them."""


@contextmanager
def read_texts(draft: HeadDraft) -> Iterator[Readings]:
    """Collects what a head has read."""
    read, reading = [], draft.reading

    def noted(text, sequence=0):
        logits = yield from reading(text, sequence)
        read.append((list(text)[: draft.model.cache.sequences[sequence].length + 1], logits[0].clone()))
        return logits

    draft.reading = noted
    try:
        yield read
    finally:
        del draft.reading


def streamed_readings(target: Path, head: Path | str) -> Readings:
    """Of a text under the least memory, all passes but the first of which have a tree."""
    with streaming_runtime(target, head, **OPTIONS) as runtime:
        assert runtime.plan.slots and not runtime.plan.draft.endswith("None")
        assert isinstance(head, str) or head.name in runtime.plan.draft
        with read_texts(runtime._models.draft) as read:
            reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert len(read) == reply.stats.passes - 1, "the first pass gives the first features"
    return read


def readings_of_a_wrong_row(target: Path, head: Path | str, monkeypatch: pytest.MonkeyPatch) -> Readings:
    """The control, where features are those of the row before."""
    of = TextFeatures.of
    monkeypatch.setattr(TextFeatures, "of", lambda self, begin, count: of(self, max(begin - 1, 0), count))
    with (
        OffloadRuntime.from_pretrained(target, head, device="cpu", **OPTIONS) as runtime,
        read_texts(runtime._models.draft) as read,
    ):
        reply = runtime.generate(PROMPT, max_new_tokens=16, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)[:16], "a bad draft changes no text"
    return read


def shared_readings(target: Path, head: Path | str, streamed: bool) -> Iterator[Readings]:
    """Of texts that share passes."""
    if streamed:
        loaded = streaming_runtime(target, head, **shared.TREE, tree="sequoia")
    else:
        loaded = OffloadRuntime.from_pretrained(target, head, device="cpu", **shared.TREE, tree="adaptive")
    with loaded as runtime:
        assert runtime.parallel == shared.PLACES
        for prompts in (shared.PROMPTS, shared.PROMPTS_ALIKE):
            with read_texts(runtime._models.draft) as read:
                texts = shared.written(runtime, prompts)
            for prompt, text in zip(prompts, texts):
                assert text == greedy(target, prompt, shared.NEW_TOKENS)[: len(text)]
            yield read


def long_readings(target: Path, head: Path | str) -> Readings:
    """Of two turns whose prompts are read in pieces: those of texts longer than the first prompt."""
    prompt = [*PROMPT] * 8
    with streaming_runtime(target, head, **{**OPTIONS, "context_length": 160, "tree_size": 6}) as runtime:
        assert runtime.plan.rows < len(prompt) // 2
        with read_texts(runtime._models.draft) as read:
            reply = runtime.generate(prompt, max_new_tokens=12, temperature=0)
            assert reply.token_ids == greedy(target, prompt, 12)
            turn = [*prompt, *reply.token_ids, 5, 6, 7]
            assert runtime.generate(turn, max_new_tokens=12, temperature=0).token_ids == greedy(target, turn, 12)
    return [(text, logits) for text, logits in read if len(text) > len(prompt)]
