"""Passes of fixed shape compute what the others do, done anew or replayed, and hide what is not of the pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offload_runtime import OffloadRuntime
from offload_runtime.attention import PassRows
from offload_runtime.errors import Interrupted
from offload_runtime.model import Model
from offload_runtime.padded_passes import PaddedPasses, eagerly
from offload_runtime.rows import text_and_tree_rows, text_rows
from scheduler.padding import Padding
from sequoia_tree import Tree
from tests.recorded_work import RecordedWork
from tests.tiny_models import PROMPT, checkpoint, greedy, perturbed

ARCHITECTURES = ["llama", "gemma2", "mistral", "gemma3_text", "phi3", "mixtral", "gpt_oss"]
TREE = Tree([-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 7, 10])  # its deepest path leaves every sliding window
CONTEXT = 120
PADDING = Padding(widths=(1, 8, 16), key_lengths=(48, 72, CONTEXT + 12 + 1), columns=16)
LENGTHS = (1, 30, 61, 96)  # of texts before a pass: in the first key length, and in each behind it
OPTIONS = {"tree": "sequoia", "tree_size": 12, "tree_depth": 4, "context_length": CONTEXT}


@contextmanager
def loaded(directory: Path) -> Iterator[Model]:
    """A model with room for `CONTEXT` tokens and a tree."""
    with OffloadRuntime.from_pretrained(directory, directory, device="cpu", **OPTIONS) as runtime:
        yield runtime._models.target.model


def text_of(length: int) -> list[int]:
    return torch.randint(96, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def tree_rows(past: int, unread: int) -> PassRows:
    ancestors, depths = torch.from_numpy(TREE.ancestor_mask()), torch.from_numpy(TREE.depth_array)
    return text_and_tree_rows(past, unread, ancestors, depths)


def passes(model: Model) -> list[Tensor]:
    """Logits of passes over all kinds of rows behind texts of several lengths, each text read and then cut back to."""
    results = []
    for length in (*LENGTHS, *LENGTHS[::-1]):
        model.cache.truncate(0)
        model.read(text_of(length), most_rows=50)
        for rows in (text_rows(length, 1, model.device), tree_rows(length, 1), tree_rows(length, 3)):
            tokens = torch.tensor(text_of(len(rows.positions) + 200)[: len(rows.positions)])
            results.append(model.forward(tokens, rows, len(tokens)).clone())
            model.cache.rollback()
        first, second = tree_rows(length, 1), tree_rows(length, 1)  # a tree in two levels: the second sees the first
        model.forward(torch.arange(4), PassRows(length, first.positions[:4], first.visible[:4, :4]), 4)
        rows = PassRows(length, second.positions, second.visible[4:])
        results.append(model.forward(torch.arange(8), rows, 8).clone())
        model.cache.commit([0, 1, 4])
        results.append(model.read([7, 8], most_rows=50).clone())
    return results


def differences(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    """The largest difference of each pass, relative to its logits; not a number where it is none."""
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in zip(ours, theirs, strict=True)]


def largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return float(torch.tensor(differences(ours, theirs)).max())  # torch's max of anything and nan is nan


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_padded_passes_equal_plain_ones(architecture):
    with loaded(checkpoint(architecture)) as model:
        expected = passes(model)
        model.pad_passes(PADDING, eagerly)
        ours = passes(model)
    assert largest(ours, expected) <= 1e-5
    assert all(torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in zip(ours, expected))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replayed_passes_equal_plain_ones(architecture):
    """As on a GPU: operations recorded at one text are repeated at others."""
    with loaded(checkpoint(architecture)) as model:
        expected = passes(model)
        recorded = RecordedWork()
        model.pad_passes(PADDING, recorded)
        ours = passes(model)
        assert model.replays
    assert largest(ours, expected) <= 1e-5
    assert {keys for _, keys in recorded.shapes} == set(PADDING.key_lengths)
    assert {width for width, _ in recorded.shapes} == set(PADDING.widths) and recorded.replays > 2 * len(
        recorded.shapes
    )


def forgets_what_is_visible(passes: PaddedPasses) -> None:
    def all_rows(source, own_columns, keys):
        rows = padded_rows(source, own_columns, keys)
        rows.visible.fill_(True)
        return rows

    padded_rows, passes._padded_rows = passes._padded_rows, all_rows


def forgets_to_hide_rows_behind_the_pass(passes: PaddedPasses) -> None:
    """The scratch row, and rows that earlier passes left behind."""

    def too_many(source, own_columns, keys):
        rows = padded_rows(source, own_columns, keys)
        rows.visible.logical_or_(passes._keys[:keys] >= passes._past + passes._columns)
        return rows

    padded_rows, passes._padded_rows = passes._padded_rows, too_many


def bakes_the_past_into_the_work(passes: PaddedPasses) -> None:
    def work(width, keys):
        passes._past = passes._past.clone().fill_(int(passes._past.tolist()))
        inner(width, keys)

    inner, passes._work = passes._work, work


def writes_padding_over_the_first_row(passes: PaddedPasses) -> None:
    def work(width, keys):
        passes._cache.scratch, scratch = 0, passes._cache.scratch
        inner(width, keys)
        passes._cache.scratch = scratch

    inner, passes._work = passes._work, work


@pytest.mark.parametrize(
    "fault",
    [
        forgets_what_is_visible,
        forgets_to_hide_rows_behind_the_pass,
        bakes_the_past_into_the_work,
        writes_padding_over_the_first_row,
    ],
)
def test_faults_would_be_seen(fault):
    with loaded(checkpoint("llama")) as model:
        expected = passes(model)
        model.pad_passes(PADDING, RecordedWork())
        assert model._padded is not None
        fault(model._padded)
        assert not largest(passes(model), expected) <= 1e-3


def test_a_model_whose_experts_the_host_picks_runs_as_it_is():
    with loaded(checkpoint("mixtral")) as model:
        model._model.set_experts_implementation("eager")
        expected = passes(model)
        model.pad_passes(PADDING, RecordedWork())
        ours = passes(model)
        assert not model.replays
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


@pytest.mark.parametrize("architecture, tree", [("llama", "sequoia"), ("gemma2", "adaptive"), ("mistral", "topk")])
def test_text_is_that_of_generate(architecture, tree):
    target = checkpoint(architecture)
    options = {**OPTIONS, "tree": tree}
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device="cpu", **options) as runtime:
        recorded = {"target": RecordedWork(), "draft": RecordedWork()}
        for role, model in (("target", runtime._models.target.model), ("draft", runtime._models.draft.model)):
            model.pad_passes(PADDING, recorded[role])
        reply = runtime.generate(PROMPT, max_new_tokens=64, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, 64)
    assert reply.stats.tokens_per_pass > 1.3
    assert all(work.replays > 10 for work in recorded.values())


def test_a_seed_draws_the_same_tree_padded_or_not():
    target, texts = checkpoint("llama"), []
    for run in (None, RecordedWork()):
        with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device="cpu", **OPTIONS) as runtime:
            if run is not None:
                runtime._models.draft.model.pad_passes(PADDING, run)
            texts.append(runtime.generate(PROMPT, max_new_tokens=40, temperature=0.8, seed=3).token_ids)
    assert texts[0] == texts[1]


def test_a_pass_is_not_interrupted_in_its_middle_but_before_it():
    with loaded(checkpoint("llama")) as model:
        model.read(text_of(12), most_rows=50)
        model.pad_passes(PADDING, RecordedWork())
        asked = []
        model.should_stop = lambda: bool(asked.append(1))
        rows = text_rows(12, 1, model.device)
        model.forward(torch.tensor([5]), rows, 1)
        assert len(asked) == 1
        model.cache.rollback()
        model.should_stop = lambda: True
        with pytest.raises(Interrupted):
            model.forward(torch.tensor([5]), rows, 1)
        assert (model.cache.length, model.cache.end) == (12, 12)


def test_passes_too_wide_run_as_they_are():
    with loaded(checkpoint("llama")) as model:
        expected = model.read(text_of(40), most_rows=50)
        model.cache.truncate(0)
        recorded = RecordedWork()
        model.pad_passes(PADDING, recorded)
        assert torch.equal(model.read(text_of(40), most_rows=50), expected)
        assert recorded.shapes == set()


def test_shapes_are_few_and_hold_every_tree():
    for tree_size in (1, 2, 8, 12, 64, 100, 512, 2048):
        for context in (1, 64, 1000, 4096, 131_072):
            padding = Padding.of(tree_size, context + tree_size + 1)
            assert list(padding.widths) == sorted(set(padding.widths)) and len(padding.widths) <= 6
            assert list(padding.key_lengths) == sorted(set(padding.key_lengths)) and len(padding.key_lengths) <= 18
            assert padding.widths[-1] >= min(tree_size, 128) and padding.columns >= tree_size
            assert padding.key_lengths[-1] == context + tree_size + 1
            assert all(b <= 1.5 * a or a < 1024 for a, b in zip(padding.key_lengths, padding.key_lengths[1:]))
