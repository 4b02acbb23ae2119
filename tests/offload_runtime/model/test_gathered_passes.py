"""Passes of fixed shape over any text of a cache, or over several, compute what the others do, and keep texts apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offload_runtime import OffloadRuntime
from offload_runtime.model import padded_passes
from offload_runtime.model.model import Model
from offload_runtime.model.padded_passes import GatheredPasses, eagerly
from offload_runtime.model.pass_part import PassPart, run_parts
from offload_runtime.model.rows import PassRows, text_rows
from scheduler.plan.padding import Padding
from tests.fakes.recorded_work import RecordedWork
from tests.pass_samples import TREE, largest_difference, text_of
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed

TEXTS, CONTEXT = 3, 111  # 128 rows for each, with those of a tree
OPTIONS: dict[str, Any] = {"tree": "sequoia", "tree_size": 12, "tree_depth": 4, "context_length": CONTEXT}
PADDING = Padding(widths=(1, 8, 16, 40), key_lengths=(64, 160, 384), columns=40)
ARCHITECTURES = ["llama", "gemma2", "mistral", "gemma3_text", "mixtral", "gpt_oss", "llama4_text", "codegen"]


@contextmanager
def loaded(directory: Path, **options: Any) -> Iterator[Model]:
    """A model with room for several texts."""
    given = {**OPTIONS, "parallel": TEXTS, **options}
    with OffloadRuntime.from_pretrained(directory, directory, device="cpu", **given) as runtime:
        yield runtime._models.target.model


def tree_part(model: Model, sequence: int) -> PassPart:
    cached, nodes = model.cache.sequences[sequence], TREE.size
    ancestors, depths = torch.from_numpy(TREE.ancestor_mask()), torch.from_numpy(TREE.depth_array)
    rows = PassRows(cached.length, cached.length + depths, ancestors, cached.first_row)
    return PassPart(torch.tensor(text_of(cached.length + sequence + 200)[:nodes]), rows, nodes)


def part(model: Model, sequence: int, count: int) -> PassPart:
    """So many tokens after a text; as many as a tree has nodes are a tree."""
    if count == TREE.size:
        return tree_part(model, sequence)
    cached = model.cache.sequences[sequence]
    rows = text_rows(cached.length, count, model.device, cached.first_row)
    return PassPart(torch.tensor(text_of(cached.length + sequence + 300)[:count]), rows, count)


def passes(model: Model) -> list[Tensor]:
    """Logits of passes over one and several texts of other lengths, of which some rows are kept each time."""
    results: list[Tensor] = []
    for lengths in ((5, 20, 9), (70, 3, 50), (30, 90, 1), (5, 20, 9)):
        for sequence, length in enumerate(lengths):
            model.cache.sequences[sequence].truncate(0)
            model.read(text_of(length), most_rows=50, sequence=sequence)
        for counts in ({1: 1}, {2: TREE.size}, {0: 1, 2: 3}, {2: TREE.size, 0: 2, 1: TREE.size}, {0: 1, 1: 1, 2: 1}):
            parts = [part(model, *one) for one in counts.items()]
            logits = run_parts(model, parts, most_rows=50)
            results += [one.clone() for one in logits]
            for one in parts:
                cached = model.cache.sequences[one.rows.first_row // model.cache.capacity]
                cached.commit([0, 1, 4] if one.wanted == TREE.size else range(one.wanted))
    return results


def padded(model: Model) -> GatheredPasses:
    assert isinstance(model._padded, GatheredPasses)
    return model._padded


@pytest.mark.parametrize(
    ("architecture", "kv_bits"),
    [*((architecture, None) for architecture in ARCHITECTURES), ("llama", 8), ("gemma3_text", 8), ("codegen", 8)],
)
def test_replayed_passes_equal_plain_ones(architecture: str, kv_bits: int | None) -> None:
    """As on a GPU: operations recorded over some texts are repeated over others."""
    with loaded(checkpoint(architecture), kv_bits=kv_bits) as model:
        expected = passes(model)
        recorded = RecordedWork()
        model.pad_passes(PADDING, recorded)
        ours = passes(model)
        assert model.replays and recorded.replays > 2 * len(recorded.shapes)
        assert {width for width, _ in recorded.shapes} == {*PADDING.widths} and len(recorded.shapes) > 6
    assert largest_difference(ours, expected) <= 1e-4


def sees_its_neighbours(gathered: GatheredPasses) -> None:
    write = gathered._write

    def too_much(tokens, texts, width, keys):
        write(tokens, texts, width, keys)
        if len(texts) > 1:
            gathered._seen(width, keys)[0, : sum(text.keys for text in texts)] = True

    gathered._write = too_much  # type: ignore[method-assign]


def reads_the_first_text(gathered: GatheredPasses) -> None:
    gathered._rows = gathered._rows % gathered._cache.capacity


def pads_over_a_text(gathered: GatheredPasses) -> None:
    write = gathered._write

    def over(tokens, texts, width, keys):
        write(tokens, texts, width, keys)
        gathered._places[sum(text.count for text in texts) : width] = texts[0].first_row

    gathered._write = over  # type: ignore[method-assign]


def bakes_the_keys_into_the_work(gathered: GatheredPasses) -> None:
    work = gathered._work

    def baked(width, keys):
        key_rows, gathered._key_rows = gathered._key_rows, torch.tensor(gathered._key_rows.tolist())
        work(width, keys)
        gathered._key_rows = key_rows

    gathered._work = baked  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "fault", [sees_its_neighbours, reads_the_first_text, pads_over_a_text, bakes_the_keys_into_the_work]
)
def test_faults_would_be_seen(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative controls."""
    with loaded(checkpoint("llama")) as model:
        expected = passes(model)
        model.pad_passes(PADDING, RecordedWork())
        fault(padded(model))
        assert not largest_difference(passes(model), expected) <= 1e-3


def test_what_is_too_wide_or_too_long_runs_as_it_is() -> None:
    with loaded(checkpoint("llama")) as model:
        expected = passes(model)
        narrow = Padding(widths=(1, 8), key_lengths=(40,), columns=8)
        recorded = RecordedWork()
        model.pad_passes(narrow, recorded)
        ours = passes(model)
        assert recorded.shapes <= {(1, 40), (8, 40)} and 0 < model.padded_total < len(expected) // 2
    assert largest_difference(ours, expected) <= 1e-5


def test_a_key_length_is_kept_while_texts_come_and_go() -> None:
    with loaded(checkpoint("llama")) as model:
        model.pad_passes(PADDING, eagerly)
        lengths = [padded(model)._key_length(needed) for needed in (10, 300, 100, 70, 300, 384, 160)]
    assert lengths == [64, 384, 384, 384, 384, 384, 384]
    far = Padding(widths=(1,), key_lengths=(64, 1024), columns=8)
    gathered = GatheredPasses(lambda *_: torch.zeros(1), model.cache, torch.device("cpu"), far, eagerly)
    assert [gathered._key_length(needed) for needed in (900, 10, 900)] == [1024, 64, 1024]


@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "none"])
def test_texts_are_those_of_generate(tree: str) -> None:
    target = checkpoint("llama")
    prompts = [[*PROMPT[: 4 + number], 7 + number] for number in range(7)]
    draft = "none" if tree == "none" else perturbed(target, 0.02)
    with OffloadRuntime.from_pretrained(
        target, draft, device="cpu", **{**OPTIONS, "tree": tree, "parallel": 3}
    ) as runtime:
        models = [runtime._models.target.model] + ([runtime._models.draft.model] if tree != "none" else [])
        recorded = [RecordedWork() for _ in models]
        for model, work in zip(models, recorded):
            model.pad_passes(runtime.plan.padding, work)
        replies = runtime.generate_many(prompts, max_new_tokens=20, temperature=0)
        assert all(work.replays > 3 for work in recorded) and all(model.padded_total > 10 for model in models)
    assert [reply.token_ids for reply in replies] == [greedy(target, prompt, 20) for prompt in prompts]


def test_one_text_alone_is_read_where_it_lies() -> None:
    with loaded(checkpoint("llama"), parallel=1) as model:
        model.pad_passes(PADDING.of(12, model.cache.capacity), eagerly)
        assert isinstance(model._padded, padded_passes.PaddedPasses)
