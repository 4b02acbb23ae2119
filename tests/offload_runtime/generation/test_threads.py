"""Threads that share a runtime: each gets its own text, whole, whatever the others do meanwhile."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.generation.turns import Turns
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

OPTIONS = {"context_length": 64, "tree": "sequoia", "tree_size": 6, "tree_depth": 2}
NEW_TOKENS = 6
THREADS = 12
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(THREADS)]


def models():
    target = checkpoint("llama")
    return target, perturbed(target, 0.02)


def resident() -> OffloadRuntime:
    return OffloadRuntime.from_pretrained(*models(), device="cpu", **OPTIONS)


def streamed() -> OffloadRuntime:
    return streaming_runtime(*models(), **OPTIONS)


@pytest.fixture(scope="module")
def expected():
    return [greedy(models()[0], prompt, NEW_TOKENS) for prompt in PROMPTS]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", [resident, streamed])
@pytest.mark.parametrize("call", ["generate", "stream"])
def test_many_threads_on_one_runtime(make: Callable[[], OffloadRuntime], call: str, expected):
    with make() as runtime, ThreadPoolExecutor(THREADS) as pool:
        together = threading.Barrier(THREADS)

        def write(prompt):
            together.wait()
            if call == "generate":
                return runtime.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0).token_ids
            steps = runtime.stream(prompt, max_new_tokens=NEW_TOKENS, temperature=0)
            return [token for step in steps for token in step.token_ids]

        assert list(pool.map(write, PROMPTS)) == expected


def test_streams_of_one_thread_take_turns(expected):
    with resident() as runtime:
        streams = [runtime.stream(prompt, max_new_tokens=NEW_TOKENS, temperature=0) for prompt in PROMPTS[:3]]
        texts: list[list[int]] = [[] for _ in streams]
        for _ in range(NEW_TOKENS):
            for text, steps in zip(texts, streams):
                text += next(steps, None).token_ids if len(text) < NEW_TOKENS else []
        assert texts == expected[:3]


@pytest.mark.timeout(120)
def test_a_callback_cannot_generate(expected):
    with streamed() as runtime:

        def calls_back():
            runtime.generate(PROMPT, max_new_tokens=1)

        with pytest.raises(UsageError, match="middle of a pass"):
            runtime.generate(PROMPTS[0], max_new_tokens=NEW_TOKENS, should_stop=calls_back)
        assert runtime.generate(PROMPTS[0], max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected[0]


@pytest.mark.timeout(120)
def test_closing_waits_for_the_pass_of_another_thread(expected):
    """The stream in the other thread is then told by name."""
    runtime = streamed()
    in_pass, closing, has_closed = threading.Event(), threading.Event(), threading.Event()

    def should_stop():
        in_pass.set()
        closing.wait(5)
        return False

    def write():
        steps = runtime.stream(PROMPTS[0], max_new_tokens=NEW_TOKENS, temperature=0, should_stop=should_stop)
        tokens = next(steps).token_ids
        assert has_closed.wait(60)
        with pytest.raises(UsageError, match="closed"):
            tokens += [token for step in steps for token in step.token_ids]
        return tokens

    with ThreadPoolExecutor(2) as pool:
        tokens = pool.submit(write)
        assert in_pass.wait(60)
        closed = pool.submit(runtime.close)
        closing.set()
        closed.result(60)
        has_closed.set()
        assert tokens.result(60) == expected[0][: len(tokens.result())]


@pytest.mark.timeout(120)
def test_who_waits_between_passes_has_the_next_turn():
    """Though a thread takes one turn after another without a pause, and another waits as well."""
    turns, done, passes, waited = Turns(), threading.Event(), [], []

    def run_passes():
        while not done.is_set():
            with turns.hold(), turns.take():
                passes.append(1)
                time.sleep(0.002)

    threads = [threading.Thread(target=run_passes) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        before = len(passes)
        with turns.between(60) as ours:
            assert ours
            waited.append(len(passes) - before)
    done.set()
    for thread in threads:
        thread.join()
    assert max(waited) <= 3, "the pass under way, and one of each that was waiting already"


def test_who_waits_too_long_between_passes_is_told():
    turns = Turns()
    with turns.hold(), turns.between(0) as ours:
        assert ours, "the turn is this thread's already"
    with turns.hold(), ThreadPoolExecutor(1) as pool:

        def ask():
            with turns.between(0.01) as ours:
                return ours

        assert pool.submit(ask).result() is False
    with turns.between(0) as ours:
        assert ours
