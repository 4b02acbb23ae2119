"""tree="auto": the tree of fewest seconds per token under scripted times, while texts stay what they have to be."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.chat.status import reply_line
from offload_runtime.model.model import Model
from offload_runtime.speculation import automatic_tree
from offload_runtime.speculation.automatic_tree import AutomaticTree
from offload_runtime.speculation.tree_policy import PassFacts, TextFacts
from sequoia_tree.choice.choose import Chooser
from sequoia_tree.choice.pass_times import PassTimes
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

SIZE = 24
OPTIONS = {"device": "cpu", "context_length": 160, "tree_size": SIZE, "tree_depth": 4}
NEW_TOKENS = 40


class Times:
    """In place of measured times: as many seconds as a test says, whatever was measured."""

    known = True

    def __init__(self, seconds: Callable[[int], float]):
        self.seconds = seconds

    def add(self, rows: int, seconds: float) -> None:
        pass


def link_bound(rows: int) -> float:
    return 1.0


def compute_bound(rows: int) -> float:
    return 1.0 * rows


def set_times(
    runtime: OffloadRuntime, passes: Callable[[int], float], level: float = 0.01, beside: float = 0.0
) -> None:
    """What passes and levels of the draft take from now on, by prediction and by the clock.

    beside: seconds of a step with a tree that no prediction knows of.
    """
    policy = runtime._decoder._policy
    policy._pass_times, policy._level_times = Times(passes), Times(lambda rows: level)

    def passed(facts):
        (text,) = facts.texts
        drafting = level * len(text.method.draft_rows) + (beside if text.method.draft_rows else 0.0)
        seconds = {"draft_seconds": drafting, "target_seconds": passes(text.nodes)}
        AutomaticTree.passed(policy, replace(facts, **seconds))

    policy.passed = passed


def target():
    return checkpoint("llama")


def open_runtime(draft=None, **options) -> OffloadRuntime:
    return OffloadRuntime.from_pretrained(target(), draft or perturbed(target(), 0.02), **{**OPTIONS, **options})


def write(runtime, **arguments):
    return runtime.generate(PROMPT, **{"max_new_tokens": NEW_TOKENS, "temperature": 0, **arguments})


@pytest.fixture
def eager(monkeypatch):
    """The choice is looked at again in every pass; else the passes of a tiny model would never pay for that."""
    monkeypatch.setattr(Chooser, "_SHARE", 1e9)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_where_the_link_is_the_limit_trees_are_large(temperature):
    with open_runtime() as runtime:
        set_times(runtime, link_bound)
        steps = list(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=temperature))
        assert "none" not in runtime.last_reply.stats.methods
        assert all(SIZE // 2 <= step.drafted < SIZE for step in steps)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_where_computing_is_the_limit_nothing_is_drafted(temperature):
    with open_runtime() as runtime:
        set_times(runtime, compute_bound)
        reply = write(runtime, temperature=temperature)
    assert reply.stats.methods == {"none": NEW_TOKENS} and reply.stats.drafted == 0


def test_greedy_text_stays_while_the_choice_changes(eager):
    with open_runtime() as runtime:
        methods, text = [], []
        for number, step in enumerate(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)):
            methods.append(step.method)
            text += step.token_ids
            set_times(runtime, compute_bound if number % 4 < 2 else link_bound)
    changes = sum(one != other for one, other in pairwise(methods))
    assert changes >= 4 and {"none", "sequoia"} <= set(methods)
    assert text == greedy(target(), PROMPT, NEW_TOKENS)


def test_a_pair_that_became_known_gets_adaptive_trees(monkeypatch, eager):
    """Once static trees bring less than acceptances promised; what was learnt outlives the reply."""
    monkeypatch.setattr(automatic_tree, "LEAST_POSITIONS", 20)
    with open_runtime() as runtime:
        set_times(runtime, link_bound)
        assert "adaptive" not in write(runtime, max_new_tokens=8).stats.methods, "the pair is hardly known yet"
        ((_, setting),) = runtime._decoder._policy._settings.items()
        for _ in range(5):
            setting.corrections["static"].add(1.0, 4.0)
        reply = write(runtime)
        assert "adaptive" in reply.stats.methods and reply.token_ids == greedy(target(), PROMPT, NEW_TOKENS)
        assert set(write(runtime, max_new_tokens=8).stats.methods) == {"adaptive"}


def test_a_draft_that_is_no_good_is_given_up(eager):
    """By the published acceptances it would have been worth its time."""
    with open_runtime(checkpoint("llama", seed=1, num_hidden_layers=1)) as runtime:
        set_times(runtime, link_bound, level=0.3)
        steps = list(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0))
    assert steps[0].drafted > 0 and [step.method for step in steps[-5:]] == ["none"] * 5


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_tree_that_takes_longer_than_predicted_is_given_up(temperature):
    """By prediction it is three times as fast as plain decoding, whatever that was seen to take."""
    with open_runtime() as runtime:
        set_times(runtime, lambda rows: 0.001, level=0.0, beside=0.009)
        steps = list(runtime.stream(PROMPT, max_new_tokens=100, temperature=temperature))
        methods = [step.method for step in steps]
        assert methods[0] != "none" and methods.count("none") > 50
        assert all(method == "none" for method in methods[-20:])
        reply = write(runtime, temperature=temperature)
        assert reply.stats.methods["none"] > 0.8 * reply.stats.passes, "the next reply knows it"
    assert temperature or reply.token_ids == greedy(target(), PROMPT, NEW_TOKENS)


def test_plain_decoding_is_tried_and_left_again():
    with open_runtime() as runtime:
        set_times(runtime, lambda rows: 0.001, level=0.0, beside=0.002)
        steps = list(runtime.stream(PROMPT, max_new_tokens=120, temperature=0))
    methods = [step.method for step in steps]
    assert methods.index("none") == 17 and methods[17:21] == ["none"] * 4, "the first pass read the prompt"
    assert "none" not in methods[21:]


def test_where_weights_stream_the_choice_goes_by_prediction():
    """No pass is spent on trials."""
    options = {"context_length": 160, "tree_size": 12, "tree_depth": 4}
    with streaming_runtime(target(), perturbed(target(), 0.02), **options) as runtime:
        set_times(runtime, lambda rows: 0.001, level=0.0, beside=0.009)
        steps = list(runtime.stream(PROMPT, max_new_tokens=100, temperature=0))
    assert "none" not in [step.method for step in steps]


def test_what_the_draft_has_to_catch_up_with_is_not_a_trees_usual_time():
    with open_runtime() as runtime:
        set_times(runtime, compute_bound, level=0.01)
        write(runtime)
        policy = runtime._decoder._policy
        ((sampling, setting),) = policy._settings.items()
        text = TextFacts(setting.tree, sampling, tokens=1, nodes=2, fresh_text=0)
        facts = PassFacts((text,), draft_seconds=9.0, target_seconds=1.0)
        assert not setting.drafted
        for _ in range(5):
            AutomaticTree.passed(policy, facts)
        assert len(setting.contest.tree._steps) == 4


def open_streaming() -> OffloadRuntime:
    return streaming_runtime(target(), perturbed(target(), 0.02), context_length=160, tree_size=SIZE, tree_depth=4)


def test_a_seed_repeats_its_text_whatever_ran_before(eager):
    seeded = {"temperature": 1.0, "seed": 5}
    with open_streaming() as runtime:
        set_times(runtime, compute_bound)
        first = write(runtime, **seeded)
        assert set(first.stats.methods) == {"sequoia"} and first.stats.predicted_passes == 0
        assert first.stats.drafted == first.stats.passes * (SIZE - 1), "the planned tree, slow as it is"
        unseeded = write(runtime, temperature=1.0)
        assert set(unseeded.stats.methods) == {"none"}, "no seed, no promise"
        set_times(runtime, link_bound)
        for _ in range(2):
            assert "none" not in write(runtime, temperature=1.0).stats.methods
        again = write(runtime, **seeded)
    with open_streaming() as fresh:
        anew = write(fresh, **seeded)
    assert first.token_ids == again.token_ids == anew.token_ids
    assert first.stats.methods == again.stats.methods == anew.stats.methods


def test_where_a_processor_streams_nothing_a_seed_gets_no_tree(eager):
    """It could not depend on times, and would mostly cost some."""
    seeded = {"temperature": 1.0, "seed": 5}
    with open_runtime() as runtime:
        set_times(runtime, link_bound)
        first = write(runtime, **seeded)
        assert "none" not in write(runtime, temperature=1.0).stats.methods
        again = write(runtime, **seeded)
    assert set(first.stats.methods) == {"none"} and first.token_ids == again.token_ids


def test_predictions_are_reported():
    with open_runtime() as runtime:
        set_times(runtime, link_bound)
        steps = list(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0))
        stats = runtime.last_reply.stats
        first = steps[0]
        assert 1 < first.predicted_tokens <= 5 and 1.01 <= first.predicted_seconds <= 1.04 + 1e-9
        assert stats.predicted_passes == stats.passes == len(steps)
        assert stats.predicted_tokens == pytest.approx(sum(step.predicted_tokens for step in steps))
        assert stats.predicted_seconds == pytest.approx(sum(step.predicted_seconds for step in steps))
        assert stats.measured_tokens == sum(step.accepted + 1 for step in steps)
        tokens = stats.predicted_tokens / stats.passes
        pace = stats.predicted_tokens / stats.predicted_seconds
        assert f"(predicted {tokens:.1f} at {pace:.1f} tok/s)" in reply_line(stats, runtime.plan, 52)
        stats.predicted_passes = stats.passes // 2 - 1
        assert "predicted" not in reply_line(stats, runtime.plan, 52), "most passes were not predicted"


def test_an_unmeasured_link_is_measured_by_the_planned_tree():
    options = {"context_length": 96, "tree_size": 12, "tree_depth": 4}
    with streaming_runtime(target(), perturbed(target(), 0.02), **options) as runtime:
        policy = runtime._decoder._policy
        policy._plan = replace(policy._plan, seconds_per_pass=None)
        policy._pass_times = PassTimes()
        steps = list(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0))
        text = runtime.last_reply.token_ids
    assert steps[0].drafted == 11 and steps[0].predicted_tokens is None
    assert all(step.predicted_tokens is not None for step in steps[1:])
    assert text == greedy(target(), PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("streamed", [False, True])
def test_models_are_timed_once_and_nothing_remains(streamed, monkeypatch):
    """A streamed target is not: each of its passes would take as long as the link does."""
    passes = []
    forward = Model.forward

    def counted(model, tokens, *arguments, **keywords):
        passes.append((model, len(tokens)))
        return forward(model, tokens, *arguments, **keywords)

    monkeypatch.setattr(automatic_tree, "_CALIBRATION_SECONDS", math.inf)
    monkeypatch.setattr(Model, "forward", counted)
    options = {"context_length": 96, "tree_size": 12, "tree_depth": 4}
    models = target(), perturbed(target(), 0.02)
    open_it = streaming_runtime if streamed else OffloadRuntime.from_pretrained
    with open_it(*models, **options) as runtime:
        assert write(runtime).token_ids == greedy(target(), PROMPT, NEW_TOKENS)
        loaded = runtime._models
        timed = [1, 1, 4, 4, 11, 11]
        expected = [(loaded.draft.model, rows) for rows in timed]
        expected += [] if streamed else [(loaded.target.model, rows) for rows in timed]
        assert passes[: len(expected)] == expected
        passes.clear()
        assert write(runtime).token_ids == greedy(target(), PROMPT, NEW_TOKENS)
        assert sum(rows == 11 for _, rows in passes) == 0


def test_plain_decoding_is_not_timed_against_a_draft_of_one_node():
    """The smallest tree there is: a root. It is the target alone."""
    with open_runtime(tree_size=1) as runtime:
        reply = write(runtime)
        sampled = write(runtime, temperature=1.0, seed=3)
    assert reply.token_ids == greedy(target(), PROMPT, NEW_TOKENS)
    assert set(reply.stats.methods) == set(sampled.stats.methods) == {"none"}
