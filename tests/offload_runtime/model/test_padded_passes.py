"""Passes of fixed shape compute what the others do, done anew or replayed, and hide what is not of the pass."""

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.errors import Interrupted
from offload_runtime.model.padded_passes import PaddedPasses, eagerly
from offload_runtime.model.rows import text_rows
from scheduler.plan.padding import Padding
from tests.fakes.recorded_work import RecordedWork
from tests.pass_samples import OPTIONS, PADDING, largest_difference, loaded, passes, text_of
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed

ARCHITECTURES = ["llama", "gemma2", "mistral", "gemma3_text", "phi3", "mixtral", "gpt_oss", "llama4_text"]


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_padded_passes_equal_plain_ones(architecture):
    with loaded(checkpoint(architecture)) as model:
        expected = passes(model)
        model.pad_passes(PADDING, eagerly)
        ours = passes(model)
    assert largest_difference(ours, expected) <= 1e-5
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
    assert largest_difference(ours, expected) <= 1e-5
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
        assert not largest_difference(passes(model), expected) <= 1e-3


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


def test_what_the_plan_says_is_replayed(monkeypatch):
    """As where the device is a GPU; the tree's last levels and the prompt's first piece are of other shapes."""
    target = checkpoint("llama")
    monkeypatch.setattr("offload_runtime.loading.models.CudaGraphs", lambda device: RecordedWork())
    monkeypatch.setattr("scheduler.plan.plan.replayed", lambda models, device, shape: ("draft",))
    options = {**OPTIONS, "tree": "auto", "tree_size": 40}
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device="cpu", **options) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=64, temperature=0)
        assert runtime._models.draft.model.padded_total > 10 and not runtime._models.target.model.replays
    assert reply.token_ids == greedy(target, PROMPT, 64)


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
        assert (model.cache.sequences[0].length, model.cache.sequences[0].end) == (12, 12)


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
