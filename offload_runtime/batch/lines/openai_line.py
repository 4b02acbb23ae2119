"""Lines of OpenAI's batch form: requests to a server's endpoints, read and answered as the server does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from offload_runtime.batch.lines.batch_line import BatchLine, RefusedLineError, error_object, with_defaults
from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.api.asked import Asked, Offer
from offload_runtime.serve.api.chat import read_chat
from offload_runtime.serve.api.completion import read_completion
from offload_runtime.serve.api.fields import bad
from offload_runtime.serve.errors import ApiError, openai_body

if TYPE_CHECKING:
    from offload_runtime.generation.reply import Reply

ENDPOINTS = {"/v1/chat/completions": read_chat, "/v1/completions": read_completion}
NAMES = ("custom_id", "method", "url", "body")  # a line that has one of them is of this form


@dataclass(frozen=True)
class OpenAILine(BatchLine):
    """fields: the line's object. defaults: arguments for what its body leaves out. offer: what the model is called."""

    fields: Mapping[str, Any]
    defaults: Mapping[str, Any]
    offer: Offer

    @property
    def custom_id(self) -> str | None:
        given = self.fields.get("custom_id")
        return given if isinstance(given, str) else None

    def requests(self) -> list[GenerationRequest]:
        try:
            return [with_defaults(text, self.defaults) for text in self._asked.texts]
        except ApiError as error:
            raise RefusedLineError(error) from error

    def reply(self, replies: "Sequence[Reply]") -> dict[str, Any]:
        return self._output(200, self._asked.form.whole(replies))

    def failure(self, error: OffloadError) -> dict[str, Any]:
        answer = error.answer if isinstance(error, RefusedLineError) else None
        if answer is None:
            answer = ApiError(400 if isinstance(error, UsageError) else 500, str(error))
        return {**self._output(answer.status, openai_body(answer)), "error": error_object(error)}

    def _output(self, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
        response = {"status_code": status, "request_id": self.key, "body": body}
        return {"id": f"batch_req_{self.key}", "custom_id": self.custom_id, "response": response, "error": None}

    @cached_property
    def _asked(self) -> Asked:
        if not self.custom_id:
            raise bad("custom_id", "must be a text, not empty, of which every line has its own")
        if self.fields.get("method", "POST") != "POST":
            raise bad("method", "must be POST")
        read = ENDPOINTS.get(str(self.fields.get("url")))
        if read is None:
            raise bad("url", f"must be {' or '.join(ENDPOINTS)}")
        body = self.fields.get("body")
        if not isinstance(body, dict):
            raise bad("body", "must be an object: the body of a request")
        if body.get("seed") is None:  # the default, before it is read: each of several texts gets its own from it
            body = {**body, "seed": self.defaults.get("seed")}
        asked = read(body, self.offer)
        if asked.stream:
            raise bad("stream", "replies go into a file as they are finished")
        return asked
