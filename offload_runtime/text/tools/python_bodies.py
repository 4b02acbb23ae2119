"""Calls that are written as a list of Python's calls: [NAME(key="value", ...), ...].

Readers as in `json_bodies`.
"""

import ast

from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools


def read_python(body: str, tools: Tools) -> tuple[ToolCall, ...]:
    """LFM 2. Only parsed, never run; arguments are literals by name."""
    try:
        written = ast.parse(body.strip(), mode="eval").body
        calls = written.elts if isinstance(written, ast.List) else [written]
        return tuple(_call(call) for call in calls)
    except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError("no call") from error


def inside_nothing(body: str) -> bool:
    """A mark is never a part of a call: the marks of this form are tokens."""
    return False


def _call(call: ast.expr) -> ToolCall:
    if not isinstance(call, ast.Call) or call.args or not all(one.arg for one in call.keywords):
        raise ValueError("no call")
    return ToolCall.of(ast.unparse(call.func), {str(one.arg): ast.literal_eval(one.value) for one in call.keywords})
