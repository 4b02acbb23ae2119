"""What a line of the input asks for, and the line of output that answers it. Imports no torch."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.errors import ApiError

if TYPE_CHECKING:
    from offload_runtime.generation.reply import Reply

# Python's `splitlines` takes them for line ends; JSON escapes all others anyway.
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


class RefusedLineError(UsageError):
    """A line that asks for what cannot be done. answer: what a server says to the same request."""

    def __init__(self, answer: ApiError):
        super().__init__(answer.message)
        self.answer = answer


@dataclass(frozen=True)
class BatchLine(ABC):
    """One line of the input. key: names this line of this job, and stands first in the line that answers it."""

    key: str
    index: int

    @property
    def custom_id(self) -> str | None:
        """The name that must be the line's own in its file, where the form has one."""
        return None

    @abstractmethod
    def requests(self) -> Sequence[GenerationRequest]:
        """The texts to write, one or more. Raises UsageError if the line cannot be run."""

    @abstractmethod
    def reply(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        """The output for the finished texts, in the order of `requests`."""

    @abstractmethod
    def failure(self, error: OffloadError) -> dict[str, Any]:
        """The output for a line that could not be answered."""


@dataclass(frozen=True)
class UnreadableLine(BatchLine):
    """A line that holds no request. openai: the form of the job's other lines."""

    error: UsageError
    openai: bool

    def requests(self) -> Sequence[GenerationRequest]:
        raise self.error

    def reply(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        raise AssertionError("there are no texts to reply with")

    def failure(self, error: OffloadError) -> dict[str, Any]:
        if self.openai:
            said = {**error_object(error), "line": self.index + 1}
            return {"id": f"batch_req_{self.key}", "custom_id": None, "response": None, "error": said}
        return {"request_id": self.key, "index": self.index, "error": error_object(error)}


def output_line(output: Mapping[str, Any]) -> bytes:
    """One line of JSON with its line end, UTF-8."""
    return json.dumps(output, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS).encode() + b"\n"


def error_object(error: OffloadError) -> dict[str, str]:
    """An error as the output has it. code: whether the line is to blame, or the run."""
    return {"code": "invalid_request" if isinstance(error, UsageError) else "failed", "message": str(error)}


def with_defaults(request: GenerationRequest, defaults: Mapping[str, Any]) -> GenerationRequest:
    """The request, with these arguments where it has none."""
    given = {name: value for name, value in request.arguments.items() if value is not None}
    return GenerationRequest(request.prompt, {**defaults, **given})
