"""POST /v1/chat/completions: from its body to texts to write, and from their steps to its answers."""

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.api.asked import Asked, Offer, SseEvent, end_of_stream, read_stream, usage
from offload_runtime.serve.api.fields import Fields, bad
from offload_runtime.serve.api.generation_config import read_generation_config
from offload_runtime.serve.api.messages import read_messages
from offload_runtime.serve.api.sampling import read_most_tokens, read_sampling, seeds
from offload_runtime.serve.api.token_texts import TokenTexts, chat_logprobs
from offload_runtime.serve.api.tools import kept, read_tools, written
from offload_runtime.serve.errors import ApiError
from offload_runtime.serve.views import step_view

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.reply import Reply

MOST_LOGPROBS = 20
FORMATS = ("text", "json_object", "json_schema")
# They change nothing here: who asks, what it is for, and how OpenAI's own machines should treat it.
HARMLESS = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier")


def read_chat(body: Mapping[str, Any], offer: Offer) -> Asked:
    """The texts that a body asks for. Raises ApiError that names the field at fault."""
    fields = Fields(body)
    model, messages = offer.read_model(fields), read_messages(fields)
    arguments = {
        **read_generation_config(fields),
        **read_sampling(fields),
        **read_most_tokens(fields, "max_completion_tokens", "max_tokens"),
    }
    count = fields.whole("n", 1, offer.most_texts) or 1
    tools, several_calls = read_tools(fields)
    stream, include_usage = read_stream(fields)
    more = {
        "top_logprobs": _top_logprobs(fields),
        "response_format": read_response_format(fields),
        "template_arguments": fields.mapping("chat_template_kwargs"),
    }
    shows_passes = _shows_passes(fields)
    _read_others(fields)
    fields.finish()
    arguments |= {name: value for name, value in more.items() if value is not None} | tools
    texts = tuple(
        GenerationRequest(messages, {**arguments, "seed": seed}) for seed in seeds(arguments.get("seed"), count)
    )
    form = ChatForm(model, count, include_usage, offer.token_texts, shows_passes, several_calls)
    return Asked(texts, form, stream)


def _top_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, MOST_LOGPROBS)
    if top is not None and not wanted:
        raise bad("top_logprobs", "only with logprobs=true")
    return (top or 0) if wanted else None


def read_response_format(fields: Fields) -> dict[str, Any] | None:
    """The format for the runtime to hold the reply to; None for text as it comes."""
    given = fields.mapping("response_format")
    if given is None:
        return None
    form = Fields(given, "response_format")
    kind, inner = form.choice("type", FORMATS), form.below("json_schema")
    if kind == "json_schema" and (inner is None or inner.mapping("schema") is None):
        raise bad(form.path("json_schema"), 'must be {"schema": {…}}')
    return None if kind == "text" else given


def _shows_passes(fields: Fields) -> bool:
    """Whether chunks of a stream tell of their passes, as the server's own page asks for."""
    options = fields.below("sequoia")
    if options is None:
        return False
    shows_passes = options.flag("steps")
    options.finish()
    return shows_passes


def _read_others(fields: Fields) -> None:
    for name in HARMLESS:
        fields.text(name)
    fields.mapping("metadata")
    fields.only("store", False)
    fields.only("modalities", ["text"])
    for name in ("functions", "function_call"):
        fields.refuse(name, "it is the old form of tools")
    fields.refuse("reasoning_effort", "chat_template_kwargs gives the model's template its own variables")
    fields.refuse("verbosity", "ask for it in a message")
    fields.refuse("audio", "this model writes text")
    fields.refuse("prediction", "the draft model does that")
    fields.refuse("web_search_options", "nothing is looked up")


def _finish_reason(ended: "Step | Reply", has_calls: bool) -> str | None:
    return "tool_calls" if has_calls and ended.finish_reason == "stop" else ended.finish_reason


class ChatForm:
    """Answers as chat.completion and, step by step, as chat.completion.chunk.

    shows_passes: each step gives a chunk, and it has a field "sequoia" that tells of the pass. several_calls: a choice
    may call more than one tool.
    """

    def __init__(
        self,
        model: str,
        choices: int,
        include_usage: bool,
        token_texts: TokenTexts,
        shows_passes: bool = False,
        several_calls: bool = True,
    ):
        self._choices, self._include_usage, self._token_texts = choices, include_usage, token_texts
        self._shows_passes, self._several_calls = shows_passes, several_calls
        self._calls = Counter[int]()  # that each choice has so far
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def opening(self, replies: "Sequence[Reply]") -> Iterator[SseEvent]:
        """Who speaks."""
        for index in range(self._choices):
            yield SseEvent(self._chunk(index, {"role": "assistant", "content": ""}))

    def step(self, index: int, step: "Step") -> Iterator[SseEvent]:
        """What a step adds, if it adds anything, and why the text has ended."""
        delta = {"reasoning_content": step.reasoning, "content": step.text, "tool_calls": self._new_calls(index, step)}
        delta = {name: value for name, value in delta.items() if value}
        logprobs = chat_logprobs(self._token_texts, [*step.logprobs]) if step.logprobs else None
        if self._shows_passes:
            chunk = self._chunk(index, delta, logprobs=logprobs)
            yield SseEvent({**chunk, "sequoia": step_view(step)})
        elif delta or logprobs:
            yield SseEvent(self._chunk(index, delta, logprobs=logprobs))
        if step.finish_reason is not None:
            yield SseEvent(self._chunk(index, {}, _finish_reason(step, bool(self._calls[index]))))

    def closing(self, replies: "Sequence[Reply]") -> Iterator[SseEvent]:
        """The usage, if asked for."""
        if self._include_usage:
            yield SseEvent({**self._chunk_head(), "choices": [], "usage": usage(replies, self._choices)})
        yield from end_of_stream()

    def failed(self, error: ApiError) -> Iterator[SseEvent]:
        """An error in place of the rest."""
        return end_of_stream(error)

    def whole(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        """The answer at once."""
        choices = [self._choice(index, reply) for index, reply in enumerate(replies)]
        head = {"object": "chat.completion", **self._head}
        return {**head, "choices": choices, "usage": usage(replies, self._choices)}

    def _choice(self, index: int, reply: "Reply") -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if calls := kept(reply.tool_calls, 0, self._several_calls):
            message |= {"content": reply.text or None, "tool_calls": [written(call) for call in calls]}
        logprobs = chat_logprobs(self._token_texts, reply.logprobs) if reply.logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _finish_reason(reply, bool(calls)),
        }

    def _new_calls(self, index: int, step: "Step") -> list[dict[str, Any]]:
        """The calls that a step adds, whole."""
        known = self._calls[index]
        calls = kept(step.tool_calls, known, self._several_calls)
        self._calls[index] += len(calls)
        return [{"index": number, **written(call)} for number, call in enumerate(calls, known)]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        none_yet = {"usage": None} if self._include_usage else {}
        return {**self._chunk_head(), "choices": [choice], **none_yet}

    def _chunk_head(self) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", **self._head}
