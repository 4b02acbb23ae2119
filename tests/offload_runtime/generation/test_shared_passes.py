"""Texts that are written side by side: each is the text that `generate` writes alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.errors import PromptError, UsageError
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed

NEW_TOKENS = 7
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(5)]


@pytest.fixture(scope="module")
def runtime():
    target = checkpoint("llama")
    options = {"context_length": 64, "tree": "sequoia", "tree_size": 6, "tree_depth": 2}
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), device="cpu", **options) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected():
    return [greedy(checkpoint("llama"), prompt, NEW_TOKENS) for prompt in PROMPTS]


def test_replies_come_in_the_order_of_the_prompts(runtime: OffloadRuntime, expected) -> None:
    replies = runtime.generate_many(PROMPTS, max_new_tokens=NEW_TOKENS, temperature=0)
    assert [reply.token_ids for reply in replies] == expected


def test_requests_are_taken_as_places_become_free(runtime: OffloadRuntime, expected) -> None:
    taken = []

    def requests():
        for prompt in PROMPTS:
            taken.append(prompt)
            yield GenerationRequest.of(prompt, max_new_tokens=NEW_TOKENS, temperature=0)

    texts: dict[GenerationRequest, list[int]] = {}
    for request, step in runtime.stream_many(requests()):
        assert len(taken) <= len(texts) + runtime.parallel
        texts.setdefault(request, []).extend(step.token_ids)
    assert [*texts.values()] == expected


def test_a_bad_request_is_refused_and_the_others_go_on(runtime: OffloadRuntime, expected) -> None:
    with runtime.shared_passes() as passes:
        with pytest.raises(PromptError, match="empty"):
            passes.add(GenerationRequest.of([]))
        text = passes.add(GenerationRequest.of(PROMPTS[0], max_new_tokens=NEW_TOKENS, temperature=0))
        for _ in range(runtime.parallel - 1):
            passes.add(GenerationRequest.of(PROMPTS[1], max_new_tokens=NEW_TOKENS, temperature=0))
        with pytest.raises(UsageError, match="places are taken"):
            passes.add(GenerationRequest.of(PROMPTS[0]))
        while not text.done:
            assert passes.step()
        assert text.reply.token_ids == expected[0] and text.error is None


def test_a_text_begun_in_another_thread_joins(runtime: OffloadRuntime, expected) -> None:
    request = GenerationRequest.of(PROMPTS[2], max_new_tokens=NEW_TOKENS, temperature=0)
    with ThreadPoolExecutor(1) as pool, runtime.shared_passes() as passes:
        text = passes.join(pool.submit(runtime.begin, request).result())
        assert text.request is request and passes.texts == [text]
        while not text.done:
            passes.step()
        assert text.reply.token_ids == expected[2]


def test_a_text_that_is_removed_ends_and_frees_its_place(runtime: OffloadRuntime) -> None:
    with runtime.shared_passes() as passes:
        text = passes.add(GenerationRequest.of(PROMPTS[0], max_new_tokens=NEW_TOKENS, temperature=0))
        passes.step()
        passes.remove(text)
        assert text.reply.finish_reason == "interrupted" and text.reply.token_ids
        assert passes.free == runtime.parallel and passes.step() == []


def test_rows_of_a_text_that_leaves_in_mid_pass_are_anothers_in_the_next(expected) -> None:
    """The pass that the others share goes on; the text that waited takes part in the very next one."""
    options = {"context_length": 64, "tree": "none", "parallel": 2}
    asked: list[bool] = []

    def leaves() -> bool:
        asked.append(len(asked) > 2)  # from the pass's third look on, between two of its layers
        return asked[-1]

    def request(number: int, **more: object) -> GenerationRequest:
        return GenerationRequest.of(PROMPTS[number], max_new_tokens=NEW_TOKENS, temperature=0, **more)

    with (
        OffloadRuntime.from_pretrained(checkpoint("llama"), None, "cpu", **options) as loaded,
        loaded.shared_passes() as passes,
    ):
        leaving, staying = passes.add(request(0, should_stop=leaves)), passes.add(request(1))
        passes.step()
        assert asked[0] is False and asked[-1] is True and len(staying.reply.token_ids) == 1
        place = leaving.writer(loaded._decoder).sequence
        passes.remove(leaving)
        late = passes.add(request(2))
        passes.step()
        assert late.writer(loaded._decoder).sequence == place
        assert len(late.reply.token_ids) == 1 and len(staying.reply.token_ids) == 2
        while passes.texts:
            passes.step()
    assert [staying.reply.token_ids, late.reply.token_ids] == expected[1:3]
