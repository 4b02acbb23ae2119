"""Rows from earlier runs come in piece by piece, so that the texts that are being written need not wait for all."""

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.generation.sequences import Sequences
from offload_runtime.model import allocation
from offload_runtime.prompt_cache import stored_rows
from tests.offload_runtime.prompt_cache.test_restarts import NEW_TOKENS, TEXT, start, write
from tests.samples.tiny_models import checkpoint, greedy

pytestmark = pytest.mark.usefixtures("small_blocks")

LONG = [*TEXT, *TEXT[::-1]]  # eight blocks and a part of one
OTHER = [token + 1 for token in TEXT[:20]]
COUNT = 24


def request(prompt: list[int], count: int = COUNT) -> GenerationRequest:
    return GenerationRequest.of(prompt, max_new_tokens=count, temperature=0)


def begin_beside_another(
    runtime: OffloadRuntime, monkeypatch: pytest.MonkeyPatch, patience: float
) -> tuple[list[int], list[int], int, int]:
    """A text that is stored begins while another is written.

    Returns both, the tokens that the other got until the first began, and those of its prompt that were read.
    """
    take_up = Sequences.take_up
    monkeypatch.setattr(Sequences, "take_up", lambda self, writers, _: take_up(self, writers, patience))
    with runtime.shared_passes() as passes:
        other = passes.add(request(OTHER))
        while not other.reply.token_ids:
            passes.step()
        known = len(other.reply.token_ids)
        stored = passes.add(request(LONG, NEW_TOKENS))
        while not stored.reply.token_ids:
            passes.step()
        meanwhile = len(other.reply.token_ids) - known
        while passes.texts:
            passes.step()
    return other.reply.token_ids, stored.reply.token_ids, meanwhile, stored.reply.stats.prompt_tokens_read


@pytest.mark.parametrize("tree", ["none", "sequoia"])
@pytest.mark.parametrize("patience, fewest, most", [(0.0, 8, 40), (math.inf, 1, 7)])
def test_others_are_written_meanwhile(
    tree: str, patience: float, fewest: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("llama")
    options = {"tree": tree, "context_length": 256}
    expected, _ = write(model, tmp_path, LONG, **options)
    with start(model, tmp_path, parallel=2, **options) as runtime:
        other, stored, meanwhile, read = begin_beside_another(runtime, monkeypatch, patience)
    assert stored == expected == greedy(model, LONG, NEW_TOKENS) and other == greedy(model, OTHER, COUNT)
    assert read <= 2 and fewest <= meanwhile <= most


def test_a_text_alone_waits_for_all_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("llama")
    write(model, tmp_path, LONG, context_length=256)
    take_up = Sequences.take_up
    monkeypatch.setattr(Sequences, "take_up", lambda self, writers, _: take_up(self, writers, 0.0))
    with start(model, tmp_path, parallel=2, context_length=256) as runtime, runtime.shared_passes() as passes:
        text = passes.add(request(LONG))
        passes.step()
        assert text.reply.token_ids and text.reply.stats.prompt_tokens_read <= 2


def test_a_text_that_leaves_before_all_is_there_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("llama")
    write(model, tmp_path, LONG, context_length=256)
    take_up = Sequences.take_up
    monkeypatch.setattr(Sequences, "take_up", lambda self, writers, _: take_up(self, writers, 0.0))
    with start(model, tmp_path, parallel=2, context_length=256) as runtime, runtime.shared_passes() as passes:
        other = passes.add(request(OTHER))
        passes.step()
        leaving = passes.add(request(LONG))
        passes.step()
        passes.remove(leaving)
        assert not runtime._decoder._sequences._loading and not leaving.reply.token_ids
        late = passes.add(request(OTHER[::-1]))
        while passes.texts:
            passes.step()
    assert other.reply.token_ids == greedy(model, OTHER, COUNT)
    assert late.reply.token_ids == greedy(model, OTHER[::-1], COUNT)


def test_the_time_to_allocate_a_cache_is_not_that_of_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("llama")
    write(model, tmp_path)
    clock = [0.0]
    allocate = allocation.allocate_cache

    def slowly(given: object) -> None:
        clock[0] = 100.0
        allocate(given)  # type: ignore[arg-type]

    monkeypatch.setattr(stored_rows, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(stored_rows, "allocate_cache", slowly)
    monkeypatch.setattr(stored_rows, "time", SimpleNamespace(perf_counter=lambda: clock[0], time_ns=time.time_ns))
    with start(model, tmp_path) as runtime:
        for stored in runtime._stored._stored:
            stored._seconds_per_token = 0.0
        reply = runtime.generate(TEXT, max_new_tokens=2, temperature=0)
    assert clock[0] == 100.0 and reply.stats.prompt_tokens_read <= 2
