"""Lines of plain form: {"prompt": …} or {"messages": …} with sampling values beside it. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offload_runtime.batch.lines.batch_line import BatchLine, RefusedLineError, error_object, with_defaults
from offload_runtime.errors import OffloadError
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.api.asked import usage
from offload_runtime.serve.api.chat import read_response_format
from offload_runtime.serve.api.fields import Fields, bad, shown
from offload_runtime.serve.api.messages import read_messages
from offload_runtime.serve.api.sampling import read_most_tokens, read_sampling
from offload_runtime.serve.errors import ApiError

if TYPE_CHECKING:
    from offload_runtime.generation.reply import Reply

_LIMITS = ("max_new_tokens", "max_tokens", "max_completion_tokens")  # its names here and in OpenAI's forms


@dataclass(frozen=True)
class PlainLine(BatchLine):
    """fields: the line's object. defaults: arguments for what it leaves out. chat: prompts are a user's messages."""

    fields: Mapping[str, Any]
    defaults: Mapping[str, Any]
    chat: bool

    def requests(self) -> list[GenerationRequest]:
        fields = Fields(self.fields)
        try:
            if type(fields.take("id")) not in (str, int, type(None)):
                raise bad("id", "must be a text or a whole number")
            if not _can_return(fields.take("metadata")):
                raise bad("metadata", "holds NaN or an infinity, which JSON has not")
            prompt = self._prompt(fields)
            arguments = {**read_sampling(fields), **read_most_tokens(fields, *_LIMITS)}
            arguments["response_format"] = read_response_format(fields)
            fields.finish()
        except ApiError as error:
            raise RefusedLineError(_hinted(error)) from error
        return [with_defaults(GenerationRequest(prompt, arguments), self.defaults)]

    def reply(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        (reply,) = replies
        written = {
            "text": reply.text,
            **({"reasoning": reply.reasoning} if reply.reasoning else {}),
            "finish_reason": reply.finish_reason,
            "usage": usage(replies, texts_per_prompt=1),
            "seed": reply.seed,
        }
        return self._output(written)

    def failure(self, error: OffloadError) -> dict[str, Any]:
        return self._output({"error": error_object(error)})

    def _output(self, written: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name in ("id", "metadata") if (value := self.fields.get(name)) is not None}
        kept = {name: value for name, value in given.items() if _can_return(value)}
        return {"request_id": self.key, "index": self.index, **kept, **written}

    def _prompt(self, fields: Fields) -> Any:
        if (self.fields.get("prompt") is None) == (self.fields.get("messages") is None):
            raise bad("prompt", "a line has either this or messages")
        prompt = fields.take("prompt")
        if prompt is None:
            return read_messages(fields)
        fields.take("messages")
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(one) is int for one in prompt)):
            raise bad("prompt", f"must be a text or a list of token ids, not {shown(prompt)}")
        return [{"role": "user", "content": prompt}] if self.chat and isinstance(prompt, str) else prompt


def _hinted(error: ApiError) -> ApiError:
    if error.code != "unknown_field":
        return error
    return ApiError(400, f"{error.message}; what is only to come back goes into metadata", error.param, error.code)


def _can_return(value: Any) -> bool:
    """Whether a field can be written to the output."""
    try:
        return bool(json.dumps(value, allow_nan=False))
    except ValueError:
        return False
