"""Errors in Anthropic's form."""

from typing import Any

from offload_runtime.serve.errors import TOO_LONG, ApiError

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    message = f"prompt is too long: {error.message}" if error.code == TOO_LONG else error.message  # as clients know it
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
