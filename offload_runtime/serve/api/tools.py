"""Tools in requests, and calls of them in answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from offload_runtime.errors import UsageError
from offload_runtime.serve.api.fields import Fields, bad, shown
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools

MOST_TOOLS = 1 << 10
_CHOICES = ("auto", "none", "required")


def read_tools(fields: Fields) -> tuple[dict[str, Any], bool]:
    """Arguments of `OffloadRuntime.stream` for the fields of OpenAI's form; whether a reply may have several calls."""
    tools, choice, several = fields.take("tools"), fields.take("tool_choice"), fields.take("parallel_tool_calls")
    if several is not None and not isinstance(several, bool):
        raise bad("parallel_tool_calls", f"must be true or false, not {shown(several)}")
    found = tool_arguments(tools, choice, "tools")
    if choice is not None and not (choice in _CHOICES or isinstance(choice, dict)):
        raise bad("tool_choice", f"must be {', '.join(_CHOICES)} or a function, not {shown(choice)}")
    return found, several is not False


def tool_arguments(tools: object, choice: object, param: str) -> dict[str, Any]:
    """The arguments for checked tools and a choice among them. Raises ApiError that names `param`."""
    if tools is None or tools == []:
        if choice not in (None, "auto", "none"):
            raise bad("tool_choice", "only with tools")
        return {}
    if not isinstance(tools, list) or len(tools) > MOST_TOOLS:
        raise bad(param, f"must be a list of at most {MOST_TOOLS} tools, not {shown(tools)}")
    try:
        Tools.of(tools)
    except UsageError as error:
        raise bad(param, str(error)) from None
    return {"tools": tools, **({} if choice in (None, "auto") else {"tool_choice": choice})}


def kept(calls: Sequence[ToolCall], known: int, several: bool) -> Sequence[ToolCall]:
    """Those of a step's calls that the answer holds, after `known` others."""
    return calls if several else calls[: max(0, 1 - known)]


def written(call: ToolCall) -> Mapping[str, Any]:
    """A call in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
