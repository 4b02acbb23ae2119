"""Texts whose KV rows lie in host memory are those of rows on the device, on a GPU that only pretends."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError
from offload_runtime.generation import sequences
from offload_runtime.model import model
from offload_runtime.model.cached_rows.layers import TravellingLayer
from offload_runtime.model.cached_rows.travelling_rows import TravellingRows
from scheduler.plan.plan import Tier
from tests.pretend_cuda import pretend_cuda
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed

OPTIONS: dict[str, Any] = {"tree_size": 12, "tree_depth": 3, "context_length": 64, "dtype": "float32"}
# Windows, capped scores, keys and values of two widths, experts; nothing else streams, or layers as well.
CASES = [("llama", True), ("gemma3_text", False), ("gemma2", True), ("deepseek_v3", True), ("mixtral", False)]
SAMPLINGS: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}]
TOKENS = 8
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(5)]


def runtime(architecture: str, device: str, streams: bool = False, **options: Any) -> OffloadRuntime:
    """Where layers stream, under the least device memory that the planner accepts."""
    target = checkpoint(architecture)
    given, cap = {**OPTIONS, "tree": "sequoia", **options, "device": device}, 1
    while streams:
        try:
            return OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device_memory=cap, **given)
        except DoesNotFitError as error:
            assert error.needed > cap
            cap = error.needed
    return OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **given)


def written(loaded: OffloadRuntime, **sampling: Any) -> list[list[int]]:
    """A text, one that begins alike and goes on differently, and the first again."""
    prompts = [PROMPT, [*PROMPT[:-2], 5], PROMPT]
    return [loaded.generate(prompt, max_new_tokens=TOKENS, seed=1, **sampling).token_ids for prompt in prompts]


@pytest.mark.parametrize(("architecture", "streams"), CASES)
def test_texts_are_those_of_rows_on_the_device(architecture: str, streams: bool) -> None:
    with runtime(architecture, "cpu") as loaded:
        expected = [written(loaded, **sampling) for sampling in SAMPLINGS]
    with pretend_cuda(), runtime(architecture, "cuda", streams, kv="host") as loaded:
        assert loaded.plan.kv == "host" and (Tier.HOST in loaded.plan.tiers) == streams
        assert [written(loaded, **sampling) for sampling in SAMPLINGS] == expected
        assert loaded._models.target.model.cache.travelling.crossed_bytes > 0


@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "none"])
def test_texts_that_share_passes_keep_to_their_own_rows(tree: str) -> None:
    expected = [greedy(checkpoint("llama"), prompt, TOKENS) for prompt in PROMPTS]
    with pretend_cuda(), runtime("llama", "cuda", True, kv="host", parallel=3, tree=tree) as loaded:
        assert loaded.plan.kv == "host" and loaded.parallel == 3
        replies = loaded.generate_many(PROMPTS, max_new_tokens=TOKENS, temperature=0)
        assert [reply.token_ids for reply in replies] == expected


def test_attention_in_a_models_own_code_meets_no_rows_that_nobody_wrote() -> None:
    """It goes over the rows of all texts, with a weight of 0 for those of others."""
    expected = [greedy(checkpoint("codegen"), prompt, TOKENS) for prompt in PROMPTS]
    with pretend_cuda(), runtime("codegen", "cuda", kv="host", parallel=3) as loaded:
        assert loaded.plan.kv == "host"
        replies = loaded.generate_many(PROMPTS, max_new_tokens=TOKENS, temperature=0)
        assert [reply.token_ids for reply in replies] == expected


def test_texts_that_begin_alike_copy_rows_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "LEAST_COPIED", 4)
    copied, copy = [], TravellingLayer.copy
    monkeypatch.setattr(TravellingLayer, "copy", lambda layer, *rows: (copied.append(rows), copy(layer, *rows)))
    prompts = [[*PROMPT, number] for number in range(3)]
    expected = [greedy(checkpoint("llama"), prompt, TOKENS) for prompt in prompts]
    with pretend_cuda(), runtime("llama", "cuda", True, kv="host", parallel=3) as loaded:
        loaded.generate(PROMPT, max_new_tokens=TOKENS, temperature=0)
        replies = loaded.generate_many(prompts, max_new_tokens=TOKENS, temperature=0)
        assert [reply.token_ids for reply in replies] == expected and copied


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_text_goes_on_after_a_pass_that_was_interrupted(layers: int) -> None:
    with pretend_cuda(), runtime("llama", "cuda", True, kv="host") as loaded:
        expected = written(loaded, temperature=0)
        begun = loaded._models.target.model.layers_begun
        stops = lambda: loaded._models.target.model.layers_begun >= begun + layers  # noqa: E731
        reply = loaded.generate([*PROMPT, 1], max_new_tokens=TOKENS, temperature=0, should_stop=stops)
        assert reply.finish_reason == "interrupted"
        assert written(loaded, temperature=0) == expected


def test_rows_that_do_not_go_back_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    one_pass = TravellingRows.one_pass
    monkeypatch.setattr(TravellingRows, "one_pass", lambda rows, in_use, added: one_pass(rows, in_use, []))
    with pretend_cuda(), runtime("llama", "cuda", kv="host") as loaded:
        assert written(loaded, temperature=0)[0] != greedy(checkpoint("llama"), PROMPT, TOKENS)


def test_memory_is_what_the_plan_says_and_is_given_back() -> None:
    with pretend_cuda() as cuda:
        before, pinned = cuda.held_bytes, dict(cuda.timeline.pinned)
        with runtime("llama", "cuda", True, kv="host", parallel=3) as loaded:
            loaded.generate_many(PROMPTS, max_new_tokens=TOKENS)
            plan = loaded.plan
            assert cuda.timeline.peak - before <= plan.device_bytes
            rows = plan.texts * plan.cache_rows * plan.kv_token_bytes
            assert sum(cuda.timeline.pinned.values()) - sum(pinned.values()) >= rows
        del loaded
        assert not set(cuda.timeline.pinned) - set(pinned)


@pytest.mark.parametrize("what", ["LayerMemory", "decode_before_use"])
def test_memory_is_given_back_where_loading_fails(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = count(), getattr(model, what)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls):  # the draft, which is loaded first, has no rows there
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(model, what, fail)
    with pretend_cuda() as cuda:
        pinned = dict(cuda.timeline.pinned)
        with pytest.raises(KeyboardInterrupt):
            runtime("llama", "cuda", kv="host")
        assert not set(cuda.timeline.pinned) - set(pinned)


def test_on_a_processor_it_changes_nothing() -> None:
    with runtime("llama", "cpu", kv="host") as loaded, runtime("llama", "cpu") as usual:
        assert loaded.plan.kv == "device" and loaded.plan.kv_stays == "the processor computes in host memory"
        assert written(loaded, temperature=0) == written(usual, temperature=0)


def test_layers_that_read_what_others_have_cached_keep_their_rows_on_the_device(tmp_path: Path) -> None:
    with pretend_cuda(), runtime("gemma3n_text", "cuda", kv="host") as loaded:
        assert loaded.plan.kv == "device" and "read what others have cached" in loaded.plan.kv_stays
        assert written(loaded, temperature=0)[0] == greedy(checkpoint("gemma3n_text"), PROMPT, TOKENS)
