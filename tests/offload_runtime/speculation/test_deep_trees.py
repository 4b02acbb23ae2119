"""Drafts that are nearly the target get trees as deep as predicted seconds say, up to 192 levels, and exact ones."""

from dataclasses import replace
from statistics import fmean

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.planning import planning
from offload_runtime.planning.expected_acceptance import ExpectedAcceptance
from offload_runtime.planning.planning import prepare
from scheduler.plan.padding import Padding
from sequoia_tree.choice.choose import MAX_DEPTH, Chooser
from tests.fakes.recorded_work import RecordedWork
from tests.offload_runtime.speculation.test_automatic_tree import set_times
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

NODES, NEW_TOKENS = 200, 600
OPTIONS = {"context_length": 700, "tree_size": NODES}


def target():
    return checkpoint("llama", max_position_embeddings=1024)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """The choice is looked at again in every pass."""
    monkeypatch.setattr(Chooser, "_SHARE", 1e9)


def steps_of(draft, level: float, temperature: float) -> list:
    """Of passes of one second each, with levels of the draft of `level` seconds; the last is cut short and left out."""
    with OffloadRuntime.from_pretrained(target(), draft, device="cpu", **OPTIONS) as runtime:
        set_times(runtime, lambda rows: 1.0, level=level)
        return list(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=temperature))[:-1]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_draft_equal_to_the_target_drafts_a_path_of_nearly_192(temperature):
    """Fewer levels than that only where they bring as many tokens per second within the choice's tolerance."""
    steps = steps_of(target(), 0.0001, temperature)
    last = steps[-1]
    assert 140 < last.tree.depth <= MAX_DEPTH == 192
    assert len(last.token_ids) == last.tree.depth + 1
    assert last.predicted_tokens == pytest.approx(len(last.token_ids), rel=0.4), "one more step may have changed it"
    if temperature == 0:
        text = [token for step in steps for token in step.token_ids]
        assert text == greedy(target(), PROMPT, len(text))


def test_depth_and_tokens_are_those_that_times_and_acceptance_predict():
    draft = perturbed(target(), 0.003)
    cheap, dear = (steps_of(draft, level, temperature=0)[4:] for level in (0.0001, 0.3))
    shallow, deep = (fmean(step.tree.depth for step in steps) for steps in (dear, cheap))
    assert shallow < 0.5 * deep and max(step.tree.depth for step in cheap) > 30
    for steps in (cheap, dear):
        tokens = fmean(len(step.token_ids) for step in steps)
        assert tokens == pytest.approx(fmean(step.predicted_tokens for step in steps), rel=0.15)


def test_the_planned_depth_follows_the_acceptance(monkeypatch):
    model = checkpoint("llama")
    depths = {}
    for first in (0.5, 0.95):
        known = ExpectedAcceptance((first, (1 - first) / 2), measured=True)
        monkeypatch.setattr(planning, "expected_acceptance", lambda *_, known=known: known)
        with streaming_runtime(model, perturbed(model, 0.01), context_length=64, tree_size=NODES) as runtime:
            depths[first], options = runtime.plan.tree_depth, runtime._preparation.options
    assert depths[0.5] < 15 and 60 < depths[0.95] <= 192
    assert prepare(replace(options, tree_depth=3)).plan.tree_depth == 3
    resident = prepare(replace(options, device_memory=None)).plan
    assert not resident.slots and resident.tree_depth == 14, "where nothing streams, levels cost as much as passes"


def test_all_192_levels_fit_the_padded_shapes_of_a_draft():
    """Rows of the cache and columns of a pass reach as far as the deepest tree; each shape is recorded once."""
    options = {**OPTIONS, "tree": "chain", "tree_size": MAX_DEPTH + 1, "tree_depth": MAX_DEPTH, "context_length": 300}
    with OffloadRuntime.from_pretrained(target(), target(), device="cpu", **options) as runtime:
        model, recorded = runtime._models.draft.model, RecordedWork()
        model.pad_passes(Padding.of(MAX_DEPTH + 1, runtime.plan.cache_rows), recorded)
        steps = list(runtime.stream(PROMPT, max_new_tokens=250, temperature=0))
    assert steps[0].tree.depth == steps[0].accepted == MAX_DEPTH
    assert recorded.replays > MAX_DEPTH and len(recorded.shapes) < 8
    assert [token for step in steps for token in step.token_ids] == greedy(target(), PROMPT, 250)
