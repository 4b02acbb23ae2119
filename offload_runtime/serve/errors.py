"""What a request is answered with instead of a reply: OpenAI's form, and messages for people."""

import sys
from collections.abc import Mapping
from typing import Any

from offload_runtime.errors import ContextLengthError, OffloadError, UsageError
from offload_runtime.text.template_process import TemplateFailedError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
TOO_LONG = "context_length_exceeded"  # agents know it, and shorten their conversation
INTERNAL = "the server failed on this request; its log says why"


class ApiError(Exception):
    """An answer with an HTTP status other than 200.

    message: for people, without anything about the machine. param: the field of the body at fault. code: for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's name for the kind of error."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def openai_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def of_runtime(error: OffloadError) -> ApiError:
    """The answer to a request that the runtime refuses or fails on.

    Only messages about the request itself leave the machine: others name files, and go to the log.
    """
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code=TOO_LONG)
    if isinstance(error, UsageError | TemplateFailedError):
        return ApiError(400, str(error))
    print(f"error: {error}", file=sys.stderr, flush=True)
    return ApiError(500, INTERNAL, code="model_failed")


def queue_full(seconds: int) -> ApiError:
    """For requests past the bound of the queue. seconds: after which there may be a place."""
    return ApiError(
        503,
        f"all places are taken and the queue is full: try again in {seconds} s",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def stopping() -> ApiError:
    """For requests that a server on its way out does not begin or finish."""
    return ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "60"})
