"""How model families write calls of tools; a family is told by its chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offload_runtime.errors import UsageError
from offload_runtime.text.tools.framed_bodies import (
    inside_gemma_text,
    read_deepseek,
    read_function,
    read_gemma,
    read_kimi,
    read_mistral,
    read_solar,
)
from offload_runtime.text.tools.json_bodies import inside_string, read_json, read_keyed
from offload_runtime.text.tools.python_bodies import inside_nothing, read_python
from offload_runtime.text.tools.tagged_bodies import (
    inside_dsml,
    inside_parameter,
    inside_value,
    read_dsml,
    read_functions,
    read_pairs,
)
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools

Reader = Callable[[str, Tools], tuple[ToolCall, ...]]
Inside = Callable[[str], bool]


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
    read: Reader
    is_inside: Inside = inside_string
    inner: tuple[str, ...] = ()
    needs_end: bool = False
    bare: bool = False
    ids_name_tools: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(mark for mark in (self.begin, self.end, *self.inner) if mark)


def _between(begin: str, end: str, read: Reader, is_inside: Inside = inside_string, **more: Any) -> CallFormat:
    """A format whose begin mark is its sign, unless `more` names others."""
    return CallFormat(**{"signs": (begin,), "begin": begin, "end": end, "read": read, "is_inside": is_inside, **more})


# The splitter of thoughts knows the headers of harmony's messages and hands over the calls among them.
HARMONY_CALLS = CallFormat(("<|channel|>", "functions."), "", "", read_json)
_TAGS = ("<tool_call>", "</tool_call>")
_FORMATS = (  # the first whose signs are all there
    HARMONY_CALLS,  # gpt-oss
    _between("<seed:tool_call>", "</seed:tool_call>", read_functions, inside_parameter),
    _between("<minimax:tool_call>", "</minimax:tool_call>", read_functions, inside_parameter),
    # Qwen3-Coder, Qwen 3.5, Nemotron 3
    _between(*_TAGS, read_functions, inside_parameter, signs=("<function=", "<parameter=")),
    _between("<function=", "</function>", read_function),  # Functionary 3.1
    _between(*_TAGS, read_pairs, inside_value, signs=("<arg_key>",), needs_end=True),  # GLM 4.5 and later
    _between(
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", read_kimi),
        inner=("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ids_name_tools=True,
    ),
    _between(  # DeepSeek R1, V3, V3.1
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read_deepseek),
        inner=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    *(  # DeepSeek V3.2, V4
        _between(f"<｜DSML｜{name}>", f"</｜DSML｜{name}>", read_dsml, inside_dsml, signs=("｜DSML｜", f"{name}>"))
        for name in ("function_calls", "tool_calls")
    ),
    _between(
        "<|tool_call>", "<tool_call|>", read_gemma, inside_gemma_text, signs=("<|tool_call>call:",), inner=('<|"|>',)
    ),
    _between("[TOOL_CALLS]", "", read_mistral, inner=("[CALL_ID]", "[ARGS]")),
    _between("<|START_ACTION|>", "<|END_ACTION|>", read_json),  # Command R7B, Command A
    _between("<|tools_prefix|>", "<|tools_suffix|>", read_keyed),  # Apertus
    _between(  # Solar Open
        *("<|tool_call:begin|>", "<|tool_call:end|>", read_solar), inner=("<|tool_call:name|>", "<|tool_call:args|>")
    ),
    _between("<|tool_call_start|>", "<|tool_call_end|>", read_python, inside_nothing),  # LFM 2.5
    _between("<|tool_call_start|>", "<|tool_call_end|>", read_python, inside_nothing, signs=("<|tool_list_start|>",)),
    _between("<|tool_call|>", "<|/tool_call|>", read_json, signs=("<|tool_call|>", "<|/tool_call|>")),  # Phi 4 mini
    _between("<|tool_call|>", "", read_json),  # Granite 3
    _between("<|function_call|>", "", read_json),  # GigaChat 3
    _between("<tool_calls>", "</tool_calls>", read_json),  # Jamba, Apriel, MiniMax M1
    _between("<TOOLCALL>", "</TOOLCALL>", read_json),  # Nemotron Super, Nano 2
    _between(*_TAGS, read_json, signs=("<tool_call>", '"arguments')),  # Hermes, Qwen 2.5 and 3, Granite 4, …
    _between("<|python_tag|>", "", read_json, signs=('"parameters": ', '"name": "'), bare=True),  # Llama 3.1 to 3.3
)


def known_format(template: str) -> CallFormat | None:
    """The format of calls that a chat template teaches; None for one that is not known here."""
    return next((form for form in _FORMATS if all(sign in template for sign in form.signs)), None)


def call_format(template: str) -> CallFormat:
    """The format of calls that a chat template teaches. Raises UsageError for one that is not known here."""
    if form := known_format(template):
        return form
    begins = sorted({form.begin for form in _FORMATS if form.begin})
    raise UsageError(
        "this model's chat template teaches no form of tool calls that can be read here.\n"
        f"  known are gpt-oss's messages, Llama's JSON, and calls that begin with {', '.join(begins)}"
    )
