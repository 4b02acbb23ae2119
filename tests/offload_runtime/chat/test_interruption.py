"""A generation may end anywhere: what comes after it is as if it had never run, or picks up what it has read."""

import gc
import os
import shutil

import pytest

from loaders.io.reader import WeightReader
from offload_runtime import OffloadRuntime
from offload_runtime.errors import ModelFilesError, UsageError
from offload_runtime.model.model import Model
from scheduler.plan.plan import Tier
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

LONG_PROMPT = PROMPT * 4  # more than one pass holds
OPTIONS = {"context_length": 96, "tree": "sequoia", "tree_size": 6, "tree_depth": 2}
NEW_TOKENS = 8


def models(architecture="llama"):
    target = checkpoint(architecture)
    return target, perturbed(target, 0.02)


@pytest.fixture(scope="module")
def runtime():
    with streaming_runtime(*models(), **OPTIONS) as runtime:
        assert Tier.DISK in runtime.plan.tiers and runtime.plan.rows < len(LONG_PROMPT)
        yield runtime


@pytest.fixture(scope="module")
def expected():
    return greedy(models()[0], LONG_PROMPT, NEW_TOKENS)


def write(runtime, prompt=LONG_PROMPT, **arguments):
    return runtime.generate(prompt, **{"max_new_tokens": NEW_TOKENS, "temperature": 0, **arguments})


class StopAt:
    """Says stop when it is asked for the n-th time, counted from 0."""

    def __init__(self, n=None):
        self.n, self.asked = n, 0

    def __call__(self):
        self.asked += 1
        return self.asked - 1 == self.n


def test_a_stop_between_any_two_layers(runtime, expected):
    counter = StopAt()
    assert write(runtime, should_stop=counter).token_ids == expected
    assert counter.asked > 25
    for n in range(counter.asked):
        runtime.forget()
        stopped = write(runtime, should_stop=StopAt(n))
        done = len(stopped.token_ids)
        assert (stopped.finish_reason, stopped.token_ids) == ("interrupted", expected[:done]) and done < NEW_TOKENS
        rest = write(runtime, [*LONG_PROMPT, *stopped.token_ids], max_new_tokens=NEW_TOKENS - done)
        assert rest.token_ids == expected[done:], n
        assert write(runtime).token_ids == expected, n


def test_a_stop_while_sampling_leaves_no_trace(runtime):
    whole = write(runtime, temperature=1, seed=7).token_ids
    for n in (0, 3, 8, 15):
        write(runtime, temperature=1, seed=8, should_stop=StopAt(n))
        assert write(runtime, temperature=1, seed=7).token_ids == whole


def test_a_stop_while_models_are_timed(expected):
    """Before the first step of all; the next call times what the stopped one did not come to."""
    options = {"device": "cpu", **OPTIONS, "tree": "auto"}
    for n in (0, 2, 5, 9, 17, 33):
        with OffloadRuntime.from_pretrained(*models(), **options) as runtime:
            stopped = write(runtime, should_stop=StopAt(n))
            assert (stopped.finish_reason, stopped.token_ids) == ("interrupted", []), n
            assert write(runtime).token_ids == expected, n


@pytest.mark.parametrize("leave", ["close", "collect"])
def test_an_iterator_left_early(runtime, expected, leave):
    steps = runtime.stream(LONG_PROMPT, temperature=0)
    first = next(steps)
    reply = runtime.last_reply
    if leave == "close":
        steps.close()
    else:
        del steps
        gc.collect()
    assert (reply.finish_reason, reply.token_ids) == ("interrupted", first.token_ids)
    assert write(runtime).token_ids == expected


def test_iterators_that_take_turns(runtime, expected):
    """Each reply stays its own, though both share the caches."""
    first = runtime.stream(LONG_PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    second = runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    texts = [], []
    for steps in zip(first, second, strict=False):
        for text, step in zip(texts, steps):
            text.extend(step.token_ids)
    for text, steps in zip(texts, (first, second)):
        text.extend(token for step in steps for token in step.token_ids)
    assert texts == (expected, greedy(models()[0], PROMPT, NEW_TOKENS))


@pytest.mark.parametrize("fills", [0, 1, 2, 5])
def test_a_failed_read_is_raised_and_the_next_try_works(runtime, expected, fills, monkeypatch):
    fill, count = WeightReader.fill, iter(range(fills))

    def failing(*arguments):
        if next(count, None) is None:
            raise ModelFilesError("the disk is gone")
        fill(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(WeightReader, "fill", failing)
        with pytest.raises(ModelFilesError, match="the disk is gone"):
            write(runtime)
    assert write(runtime).token_ids == expected


def test_a_file_that_shrinks_while_it_is_read(tmp_path, expected):
    target, draft = models()
    target = shutil.copytree(target, tmp_path / "target")
    weights = target / "model.safetensors"
    whole = weights.read_bytes()
    with streaming_runtime(target, draft, **OPTIONS) as runtime:
        os.truncate(weights, 1000)
        with pytest.raises(ModelFilesError, match=r"model\.safetensors"):
            write(runtime)
        weights.write_bytes(whole)
        assert write(runtime).token_ids == expected


@pytest.fixture
def rows(monkeypatch):
    """The rows of every pass, by model: lists that grow while it runs."""
    passes = {}
    forward = Model.forward

    def counted(model, tokens, *arguments, **keywords):
        passes.setdefault(model, []).append(len(tokens))
        return forward(model, tokens, *arguments, **keywords)

    monkeypatch.setattr(Model, "forward", counted)
    return passes


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("tree", ["sequoia", "none"])
def test_only_new_tokens_are_read(architecture, tree, rows):
    target, draft = models(architecture)
    with OffloadRuntime.from_pretrained(target, draft, device="cpu", **{**OPTIONS, "tree": tree}) as runtime:
        text = [*PROMPT, *write(runtime, PROMPT).token_ids]
        continued = [*text, 90, 91, 92]
        prompts = [
            (continued, 4),  # the bonus token of the last pass has not been read yet
            (continued, 1),
            ([*text[:9], 70, *text[10:], 90], len(text) + 1 - 9),
            (text[:7], 1),
            ([50, *PROMPT], 1 + len(PROMPT)),
        ]
        loaded = runtime._models
        for prompt, new in prompts:
            rows.clear()
            assert write(runtime, prompt).token_ids == greedy(target, prompt, NEW_TOKENS)
            nodes = OPTIONS["tree_size"] if loaded.draft else 1
            assert 1 <= rows[loaded.target.model][0] - (nodes - 1) <= new
            assert loaded.draft is None or rows[loaded.draft.model][0] <= new + 1  # it does not read leaves


def test_a_state_that_took_up_half_a_pass_starts_anew():
    """A recurrent layer's state cannot be cut back to where an abandoned pass began."""
    target = checkpoint("qwen3_next")
    with OffloadRuntime.from_pretrained(target, device="cpu", context_length=96) as runtime:
        layers = len(runtime.plan.tiers)
        stopped = write(runtime, PROMPT, should_stop=StopAt(2 * layers - 1))
        assert stopped.token_ids == greedy(target, PROMPT, 1)
        prompt = [*PROMPT, stopped.token_ids[0] ^ 1]
        assert write(runtime, prompt).token_ids == greedy(target, prompt, NEW_TOKENS)


def test_a_closed_runtime_says_so(expected):
    """Instead of waiting for layers that no thread reads any more."""
    runtime = streaming_runtime(*models(), **OPTIONS)
    steps = runtime.stream(LONG_PROMPT, temperature=0)
    assert next(steps).token_ids == expected[: len(runtime.last_reply.token_ids)]
    runtime.close()
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        list(steps)
    with pytest.raises(UsageError, match="closed"):
        write(runtime)
