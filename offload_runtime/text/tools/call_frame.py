"""What a model's chat template writes around the parts of a call, found by rendering one whose parts are marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.tools.call_formats import CallFormat, call_format
from offload_runtime.text.tools.tool_call import ID_LENGTH, json_value
from offload_runtime.text.tools.tool_definitions import Tools, template_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALL_ID = "sequoiaid"  # nine letters, as some templates want
assert len(CALL_ID) == ID_LENGTH
_NAME, _KEYS, _VALUES = "sequoianamemark", ("sequoiakeya", "sequoiakeyb"), ("sequoiavaluea", "sequoiavalueb")
_QUESTION = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class CallFrame:
    """The texts of one call: before, the tool's name, between, its arguments, after. CALL_ID stands for any id.

    Arguments are JSON, or, with `parts`, opening, key, middle, value, closing for each; then `between` comes even if
    there are none.
    """

    before: str
    between: str
    after: str
    parts: tuple[str, str, str] | None = None


def call_frame(
    tokenizer: "PreTrainedTokenizerBase",
    tools: Tools,
    arguments: Mapping[str, Any] | None = None,
    messages: Sequence[Mapping[str, Any]] = (),
) -> CallFrame:
    """The frame of a model's calls. arguments: of the template. messages: those before the user's first are rendered.

    Raises UsageError where the template does not write calls from which a frame can be taken.
    """
    form = call_format(template_for(tokenizer, tools))
    leading = takewhile(lambda message: message.get("role") not in ("user", "assistant"), messages)
    asked = [*leading, _QUESTION]
    try:
        prompt = render_chat(tokenizer, asked, True, arguments, tools)
        whole = render_chat(tokenizer, [*asked, _marked_message(form)], False, arguments, tools)
        return _found(form, prompt, whole, _special(tokenizer))
    except (OffloadError, ValueError) as error:
        raise UsageError("a call cannot be forced in the form in which this model writes calls") from error


def _marked_message(form: CallFormat) -> dict[str, Any]:
    call_id = f"functions.{_NAME}:0" if form.ids_name_tools else CALL_ID
    call = {"id": call_id, "function": {"name": _NAME, "arguments": dict(zip(_KEYS, _VALUES))}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _special(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _found(form: CallFormat, prompt: str, whole: str, special: Sequence[str]) -> CallFrame:
    """The frame in a rendering. Raises ValueError where there is none that can be read back."""
    name = whole.rindex(_NAME, 0, whole.index(_KEYS[0]))
    start = whole.rfind(form.begin, 0, name) if form.begin else -1
    if start < 0 and (form.bare or not form.begin) and whole.startswith(prompt):
        start = len(prompt)
    before, rest = whole[start:name], whole[name + len(_NAME) :]
    between, rest, parts = _around_json(rest) or _around_parts(rest)
    end = _end(form, rest, special)
    body = whole[start : len(whole) - len(rest) + end]
    if start < 0 or (form.begin and not form.read(body.removeprefix(form.begin).removesuffix(form.end), Tools())):
        raise ValueError("no frame")
    return CallFrame(before, between, rest[:end].removeprefix(parts[2] if parts else ""), parts)


def _end(form: CallFormat, rest: str, special: Sequence[str]) -> int:
    """How much of what follows the arguments belongs to the call."""
    if form.end:
        return rest.index(form.end) + len(form.end)
    return min((at for one in special if (at := rest.find(one)) >= 0), default=len(rest.rstrip()))


def _around_json(text: str) -> tuple[str, str, None] | None:
    """What comes before and after the arguments, if they are JSON."""
    begin, end = text.rfind("{", 0, text.index(_KEYS[0])), text.find("}", text.index(_VALUES[1])) + 1
    try:
        is_json = begin >= 0 and json_value(text[begin:end]) == dict(zip(_KEYS, _VALUES))
    except ValueError:
        is_json = False
    return (text[:begin], text[end:], None) if is_json else None


def _around_parts(text: str) -> tuple[str, str, tuple[str, str, str]]:
    """As above for keys and values in text: what comes before all of them, after the last value, and around each."""
    head, _, rest = text.partition(_KEYS[0])
    middle, _, rest = rest.partition(_VALUES[0])
    gap, _, rest = rest.partition(_KEYS[1])
    again, _, rest = rest.partition(_VALUES[1])
    # What closes a value has to be long, so that no text contains it.
    cuts = (at for at in range(len(gap) - 1, 0, -1) if rest.startswith(gap[:at]) and head.endswith(gap[at:]))
    cut = next(cuts, 0)
    if not (cut and middle) or middle != again:
        raise ValueError("no frame")
    opening, closing = gap[cut:], gap[:cut]
    return head.removesuffix(opening), rest, (opening, middle, closing)
