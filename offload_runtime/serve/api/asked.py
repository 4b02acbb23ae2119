"""What a request asks for, once its body is read."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.api.fields import LONGEST_NAME, Fields
from offload_runtime.serve.api.token_texts import TokenTexts
from offload_runtime.serve.errors import TOO_LONG, ApiError, openai_body

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.reply import Reply

MOST_TEXTS = 128  # of one request


@dataclass(frozen=True)
class SseEvent:
    """One server-sent event. data: JSON, or text as it is. name: of the event, in forms that name theirs."""

    data: "dict[str, Any] | str"
    name: str | None = None


class ReplyForm(Protocol):
    """The form in which replies are given. One instance per request; it may keep what it has written."""

    def opening(self, replies: "Sequence[Reply]") -> Iterable[SseEvent]:
        """Events before the first pass; the replies have no more than their prompts yet."""

    def step(self, index: int, step: "Step") -> Iterable[SseEvent]:
        """Events of one step of a text; its number is that of the choice."""

    def closing(self, replies: "Sequence[Reply]") -> Iterable[SseEvent]:
        """Events after the last step of all texts."""

    def failed(self, error: ApiError) -> Iterable[SseEvent]:
        """Events instead of all others, after an error."""

    def whole(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        """The answer at once."""


@dataclass(frozen=True)
class Asked:
    """texts: what to write, in the order of the choices. stream: whether to answer step by step."""

    texts: tuple[GenerationRequest, ...]
    form: ReplyForm
    stream: bool = False


@dataclass(frozen=True)
class Offer:
    """What the server has for any request.

    model: its name. any_model: whether requests may name any other. most_texts: places for the texts of one request.
    longest_prompt: characters that could fit into the context, if every token were the longest; None if nobody knows.
    """

    model: str
    any_model: bool
    most_texts: int
    token_texts: TokenTexts
    longest_prompt: int | None = None

    def read_model(self, fields: Fields) -> str:
        """The name that the answer gives the model. Raises ApiError for one that is not here."""
        asked = fields.text("model", LONGEST_NAME)
        if asked is None:
            return self.model
        self.check_model(asked)
        return asked

    def check_length(self, request: GenerationRequest) -> None:
        """Raise ApiError for a prompt that is too long whatever its tokens are: it would take seconds to encode."""
        if isinstance(request.prompt, str):
            param, characters = "prompt", len(request.prompt)
        else:
            messages = [message for message in request.prompt if isinstance(message, Mapping)]
            param, characters = "messages", sum(map(_length, messages)) + _written(request.arguments.get("tools"))
        if self.longest_prompt is not None and characters > self.longest_prompt:
            said = f"{characters} characters are more than the context holds"
            raise ApiError(400, f"{param}: {said}, which is at most {self.longest_prompt}", param, TOO_LONG)

    def check_model(self, name: str) -> None:
        """Raise ApiError for a model that is not here."""
        if name != self.model and not self.any_model:
            raise ApiError(
                404, f"there is no model {name!r}; this server has {self.model!r}", "model", "model_not_found"
            )


def _length(message: Mapping[str, Any]) -> int:
    """Characters of a message."""
    return len(message["content"] or "") + _written(message.get("tool_calls"))


def _written(value: object) -> int:
    """Characters of a value as JSON; none of None."""
    return 0 if value is None else len(json.dumps(value, ensure_ascii=False))


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Whether to answer step by step, and whether its last event gives the usage."""
    stream, options = fields.flag("stream"), fields.below("stream_options")
    if options is None:
        return stream, False
    include_usage = options.flag("include_usage")
    options.only("include_obfuscation", False)
    options.finish()
    if not stream:
        raise ApiError(400, "stream_options: only with stream=true", "stream_options", "invalid_value")
    return stream, include_usage


def usage(replies: "Sequence[Reply]", texts_per_prompt: int) -> dict[str, Any]:
    """Tokens of some replies. The prompt of several texts counts once; cached: those that were in the cache already."""
    first = [reply.stats for reply in replies[::texts_per_prompt]]
    prompt, written = sum(one.prompt_tokens for one in first), sum(reply.stats.tokens for reply in replies)
    cached = sum(one.prompt_tokens - one.prompt_tokens_read for one in first if one.passes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def end_of_stream(error: ApiError | None = None) -> Iterator[SseEvent]:
    """What OpenAI's streams end with."""
    if error is not None:
        yield SseEvent(openai_body(error))
    yield SseEvent("[DONE]")
