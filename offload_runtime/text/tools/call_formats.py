"""How model families write calls of tools; a family is told by its chat template."""

from collections.abc import Callable
from dataclasses import dataclass

from offload_runtime.errors import UsageError
from offload_runtime.text.tools.json_bodies import (
    inside_gemma_text,
    inside_string,
    read_deepseek,
    read_gemma,
    read_json,
    read_kimi,
    read_mistral,
)
from offload_runtime.text.tools.tagged_bodies import inside_parameter, inside_value, read_functions, read_pairs
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools


@dataclass(frozen=True)
class CallFormat:
    """One family's way to write calls.

    signs: what its chat templates contain. begin, end: the marks around calls; without an end they last until the next
    begin or the end of the reply. read: takes the text between the marks, raises ValueError for what is no call.
    is_inside: whether a mark after this beginning of a call is a part of its arguments. inner: marks within a call that
    may be special tokens. needs_end: a call without its end mark may be cut short. bare: a reply may be a call without
    a mark. ids_name_tools: a call's id is functions.NAME:NUMBER.
    """

    signs: tuple[str, ...]
    begin: str
    end: str
    read: Callable[[str, Tools], tuple[ToolCall, ...]]
    is_inside: Callable[[str], bool] = inside_string
    inner: tuple[str, ...] = ()
    needs_end: bool = False
    bare: bool = False
    ids_name_tools: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(mark for mark in (self.begin, self.end, *self.inner) if mark)


# The splitter of thoughts knows the headers of harmony's messages and hands over the calls among them.
HARMONY_CALLS = CallFormat(("<|channel|>", "functions."), "", "", read_json)
_FORMATS = (  # the first whose signs are all there
    HARMONY_CALLS,  # gpt-oss
    CallFormat(("<seed:tool_call>",), "<seed:tool_call>", "</seed:tool_call>", read_functions, inside_parameter),
    CallFormat(
        ("<minimax:tool_call>",), "<minimax:tool_call>", "</minimax:tool_call>", read_functions, inside_parameter
    ),
    CallFormat(
        ("<function=", "<parameter="), "<tool_call>", "</tool_call>", read_functions, inside_parameter
    ),  # Qwen3-Coder, Qwen 3.5, Nemotron 3
    CallFormat(
        ("<arg_key>",), "<tool_call>", "</tool_call>", read_pairs, inside_value, needs_end=True
    ),  # GLM 4.5 and later
    CallFormat(
        ("<|tool_call_begin|>",),
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", read_kimi),
        inner=("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ids_name_tools=True,
    ),
    CallFormat(
        ("<｜tool▁calls▁begin｜>",),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read_deepseek),
        inner=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    CallFormat(
        ("<|tool_call>call:",),
        *("<|tool_call>", "<tool_call|>", read_gemma, inside_gemma_text),
        inner=('<|"|>',),
    ),
    CallFormat(("[TOOL_CALLS]",), "[TOOL_CALLS]", "", read_mistral, inner=("[CALL_ID]", "[ARGS]")),
    CallFormat(("<|START_ACTION|>",), "<|START_ACTION|>", "<|END_ACTION|>", read_json),  # Command R7B, Command A
    CallFormat(("<|tool_call|>", "<|/tool_call|>"), "<|tool_call|>", "<|/tool_call|>", read_json),  # Phi 4 mini
    CallFormat(("<|tool_call|>",), "<|tool_call|>", "", read_json),  # Granite 3
    CallFormat(("<tool_calls>",), "<tool_calls>", "</tool_calls>", read_json),  # Jamba
    CallFormat(("<TOOLCALL>",), "<TOOLCALL>", "</TOOLCALL>", read_json),  # Nemotron Super, Nano 2
    CallFormat(("<tool_call>",), "<tool_call>", "</tool_call>", read_json),  # Hermes, Qwen 2.5 and 3, Granite 4, …
    CallFormat(('"parameters": ', '"name": "'), "<|python_tag|>", "", read_json, bare=True),  # Llama 3.1 to 3.3
)


def call_format(template: str) -> CallFormat:
    """The format of calls that a chat template teaches. Raises UsageError for one that is not known here."""
    for form in _FORMATS:
        if all(sign in template for sign in form.signs):
            return form
    begins = sorted({form.begin for form in _FORMATS if form.begin})
    raise UsageError(
        "this model's chat template teaches no form of tool calls that can be read here.\n"
        f"  known are gpt-oss's messages, Llama's JSON, and calls that begin with {', '.join(begins)}"
    )
