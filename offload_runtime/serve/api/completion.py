"""POST /v1/completions: from its body to texts to write, and from their steps to its answers."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.api.asked import Asked, Offer, SseEvent, end_of_stream, read_stream, usage
from offload_runtime.serve.api.chat import HARMLESS, MOST_LOGPROBS
from offload_runtime.serve.api.fields import Fields, bad, shown
from offload_runtime.serve.api.sampling import read_most_tokens, read_sampling, seeds
from offload_runtime.serve.api.token_texts import TokenTexts, text_logprobs
from offload_runtime.serve.errors import ApiError

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.reply import Reply
    from offload_runtime.text.prompt import Prompt


def read_completion(body: Mapping[str, Any], offer: Offer) -> Asked:
    """The texts that a body asks for: n for each of its prompts. Raises ApiError that names the field at fault."""
    fields = Fields(body)
    model, prompts = offer.read_model(fields), _read_prompts(fields, offer.most_texts)
    arguments = {**read_sampling(fields), **read_most_tokens(fields, "max_tokens")}
    count = fields.whole("n", 1, offer.most_texts // len(prompts)) or 1
    stream, include_usage = read_stream(fields)
    top_logprobs = fields.whole("logprobs", 0, MOST_LOGPROBS)
    _read_others(fields, count)
    fields.finish()
    if top_logprobs is not None:
        arguments["top_logprobs"] = top_logprobs
    texts = tuple(
        GenerationRequest(prompt, {**arguments, "seed": seed})
        for prompt in prompts
        for seed in seeds(arguments.get("seed"), count)
    )
    return Asked(texts, CompletionForm(model, count, include_usage, offer.token_texts), stream)


def _read_prompts(fields: Fields, most: int) -> "list[Prompt]":
    """The prompts: a text, token ids, or a list of either."""
    given = fields.take("prompt")
    found = given if isinstance(given, list) and not _is_ids(given) else [given]
    if not found or not all(
        (isinstance(one, str) and one) or (isinstance(one, list) and _is_ids(one)) for one in found
    ):
        what = "must be a text, a list of token ids, or a list of those, none empty"
        raise bad("prompt", f"{what}, not {shown(given)}")
    if len(found) > most:
        raise bad("prompt", f"has {len(found)} prompts; at most {most} are taken at once")
    return found


def _is_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(one) is int for one in value)


def _read_others(fields: Fields, count: int) -> None:
    for name in HARMLESS:
        fields.text(name)
    fields.mapping("metadata")
    fields.only("store", False)
    fields.only("best_of", 1, count)
    fields.only("echo", False)
    fields.only("suffix", "")


class CompletionForm:
    """Answers as text_completion, whole or step by step."""

    def __init__(self, model: str, texts_per_prompt: int, include_usage: bool, token_texts: TokenTexts):
        self._texts_per_prompt, self._include_usage, self._token_texts = texts_per_prompt, include_usage, token_texts
        identity = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        self._head = {**identity, "created": int(time.time()), "model": model}
        self._written: dict[int, int] = {}  # characters of each choice that were given

    def opening(self, replies: "Sequence[Reply]") -> Iterator[SseEvent]:
        """Nothing: a text begins with its first token."""
        return iter(())

    def step(self, index: int, step: "Step") -> Iterator[SseEvent]:
        """What a step adds, if it adds anything, and why the text has ended."""
        offset = self._written.get(index, 0)
        self._written[index] = offset + len(step.text)
        logprobs = text_logprobs(self._token_texts, [*step.logprobs], offset) if step.logprobs else None
        if step.text or logprobs or step.finish_reason is not None:
            choice = {"index": index, "text": step.text, "logprobs": logprobs, "finish_reason": step.finish_reason}
            none_yet = {"usage": None} if self._include_usage else {}
            yield SseEvent({**self._head, "choices": [choice], **none_yet})

    def closing(self, replies: "Sequence[Reply]") -> Iterator[SseEvent]:
        """The usage, if asked for."""
        if self._include_usage:
            yield SseEvent({**self._head, "choices": [], "usage": usage(replies, self._texts_per_prompt)})
        yield from end_of_stream()

    def failed(self, error: ApiError) -> Iterator[SseEvent]:
        """An error in place of the rest."""
        return end_of_stream(error)

    def whole(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        """The answer at once."""
        choices = [
            {
                "index": index,
                "text": reply.text,
                "logprobs": text_logprobs(self._token_texts, reply.logprobs, 0) if reply.logprobs else None,
                "finish_reason": reply.finish_reason,
            }
            for index, reply in enumerate(replies)
        ]
        return {**self._head, "choices": choices, "usage": usage(replies, self._texts_per_prompt)}
