"""Lines of plain form: {"prompt": …} or {"messages": …} with sampling values beside it. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offload_runtime.batch.batch_line import BatchLine, error_object
from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.options.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from offload_runtime.generation.reply import Reply

_ALIASES = ("max_tokens", "max_completion_tokens")  # what the OpenAI form calls max_new_tokens
_OWN = ("prompt", "messages", "id", "metadata")


@dataclass(frozen=True)
class PlainLine(BatchLine):
    """fields: the line's object. defaults: for sampling values that it leaves out. chat: prompts are a user's."""

    fields: Mapping[str, Any]
    defaults: SamplingOptions
    chat: bool

    def requests(self) -> list[GenerationRequest]:
        self._check_own()
        given = _sampling(self.fields).as_arguments()
        values = {**self.defaults.as_arguments(), **{name: value for name, value in given.items() if value is not None}}
        return [GenerationRequest(self._prompt(), values)]

    def reply(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        (reply,) = replies
        written = {
            "text": reply.text,
            **({"reasoning": reply.reasoning} if reply.reasoning else {}),
            "finish_reason": reply.finish_reason,
            "usage": {
                "prompt_tokens": reply.stats.prompt_tokens,
                "completion_tokens": len(reply.token_ids),
                "total_tokens": reply.stats.prompt_tokens + len(reply.token_ids),
            },
            "seed": reply.seed,
        }
        return self._output(written)

    def failure(self, error: OffloadError) -> dict[str, Any]:
        return self._output({"error": error_object(error)})

    def _output(self, written: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: self.fields[name] for name in ("id", "metadata") if _can_return(self.fields.get(name))}
        return {"request_id": self.key, "index": self.index, **kept, **written}

    def _check_own(self) -> None:
        if ("prompt" in self.fields) == ("messages" in self.fields):
            raise UsageError('a line has either "prompt" or "messages"')
        if type(self.fields.get("id")) not in (str, int, type(None)):
            raise UsageError('"id" must be a text or a whole number')
        if not _can_return(self.fields.get("metadata", {})):
            raise UsageError('"metadata" holds NaN or an infinity, which JSON has not')

    def _prompt(self) -> Any:
        if "messages" in self.fields:
            messages = self.fields["messages"]
            if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
                raise UsageError('"messages" must be a list of objects with "role" and "content"')
            return messages
        prompt = self.fields["prompt"]
        if self.chat and isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(one) is int for one in prompt)):
            raise UsageError('"prompt" must be a text or a list of token ids; conversations go into "messages"')
        return prompt


def _sampling(fields: Mapping[str, Any]) -> SamplingOptions:
    """The sampling values among the fields. Raises UsageError for values that do not fit, and for unknown names."""
    values = {name: value for name, value in fields.items() if name not in _OWN}
    for alias in _ALIASES:
        if alias in values:
            if "max_new_tokens" in values:
                raise UsageError(f"{alias} and max_new_tokens are the same: a line has one of them")
            values["max_new_tokens"] = values.pop(alias)
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]  # as it is, not as text with escapes
    try:
        return SamplingOptions.from_mapping(values)
    except UsageError as error:
        raise UsageError(f'{error}. What is no sampling value of a line goes into its "metadata"') from error


def _can_return(value: Any) -> bool:
    """Whether a field is there and can be written to the output."""
    try:
        return value is not None and bool(json.dumps(value, allow_nan=False))
    except ValueError:
        return False
