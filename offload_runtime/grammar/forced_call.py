"""The grammar of a reply that is one call of one of some tools."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from offload_runtime.errors import UsageError
from offload_runtime.grammar.response_format import BEFORE, JSON_OPTIONS, check_schema
from offload_runtime.text.tools.call_frame import CALL_ID, CallFrame
from offload_runtime.text.tools.tool_call import ID_LENGTH
from offload_runtime.text.tools.tool_definitions import Tools

# gpt-oss thinks in messages of their own, which the grammar has to hold; a call may come at once.
_THOUGHTS = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
_COMPOSED = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"}
_ANYTHING = "/(?s:.*)/"


def forced_call(
    frame: CallFrame, tools: Tools, names: Collection[str], special: Mapping[str, int], in_messages: bool
) -> str:
    """The grammar, in llguidance's variant of Lark. special: the ids of special tokens, which are no text to it.

    in_messages: a reply consists of harmony's messages. Raises UsageError for schemas that are too large or too deep,
    and for a frame in which it cannot be told where a text ends.
    """
    return "\n".join(_Rules(frame, special).of_reply(tools, names, in_messages)) + "\n"


class _Rules:
    def __init__(self, frame: CallFrame, special: Mapping[str, int]):
        self._frame = frame
        texts = (frame.before, frame.between, frame.after, *(frame.parts or ()), *_THOUGHTS)
        marks = [mark for mark in special if any(mark in text for text in texts)]
        self._special = {mark: special[mark] for mark in marks}
        self._mark = re.compile("|".join(map(re.escape, [*sorted(marks, key=len, reverse=True), CALL_ID])))

    def of_reply(self, tools: Tools, names: Collection[str], in_messages: bool) -> Iterator[str]:
        """The rules, a line each."""
        numbered = [(f"tool{number}", name) for number, name in enumerate(sorted(names))]
        first = f"({self._text(_THOUGHTS[0])} {_ANYTHING} {self._text(_THOUGHTS[1])})?" if in_messages else "BEFORE?"
        called = " | ".join(rule for rule, _ in numbered)
        yield f"start: {first} {self._text(self._frame.before)} ({called}) {self._text(self._frame.after)}"
        yield f"BEFORE: {BEFORE}"
        for rule, name in numbered:
            yield from self._of_tool(rule, name, _closed(tools.parameters(name)))

    def _of_tool(self, rule: str, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
        check_schema(schema, f"tool_choice: the parameters of {name}")
        begins = f"{rule}: {json.dumps(name)} {self._text(self._frame.between)}"
        if self._frame.parts is None:
            yield f"{begins} {_json(schema)}"
            return
        properties, required = schema.get("properties"), schema.get("required")
        properties = properties if isinstance(properties, Mapping) else {}
        needed = frozenset(map(str, required)) if isinstance(required, list) else frozenset()
        uses = (f"{rule}_{number}{'' if key in needed else '?'}" for number, key in enumerate(properties))
        yield " ".join([begins, *uses])
        opening, middle, _ = self._frame.parts
        for number, (key, inner) in enumerate(properties.items()):
            yield f"{rule}_{number}: {self._text(opening + key + middle)} {rule}_{number}_value"
            yield self._value(f"{rule}_{number}_value", _within(schema, inner), Tools.kinds(inner))

    def _value(self, rule: str, schema: Mapping[str, Any], kinds: Collection[str]) -> str:
        """A value and what closes it: text as it is, anything else as JSON."""
        assert self._frame.parts is not None
        closing = self._frame.parts[2]
        if kinds and "string" not in kinds:
            return f"{rule}: {_json(schema)} {self._text(closing)}"
        choices = schema.get("enum")
        if isinstance(choices, list) and choices and all(isinstance(one, str) for one in choices):
            return f"{rule}: ({' | '.join(map(json.dumps, choices))}) {self._text(closing)}"
        if self._mark.search(closing):
            raise UsageError("a call cannot be forced in the form in which this model writes calls")
        return f"{rule}[suffix={json.dumps(closing)}]: {_ANYTHING}"

    def _text(self, text: str) -> str:
        """Text with special tokens and ids in it."""
        found: list[str | re.Match[str]] = []
        position = 0
        for mark in self._mark.finditer(text):
            found += [text[position : mark.start()], mark]
            position = mark.end()
        return " ".join(map(self._piece, [*found, text[position:]]))

    def _piece(self, piece: "str | re.Match[str]") -> str:
        if isinstance(piece, str):
            return json.dumps(piece) if piece else ""
        return f"/[a-zA-Z0-9]{{{ID_LENGTH}}}/" if piece[0] == CALL_ID else f"<[{self._special[piece[0]]}]>"


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of arguments that leaves it open whether there may be others: there may not."""
    is_plain = "properties" in schema and not _COMPOSED & {*schema}
    return {"type": "object", **({"additionalProperties": False} if is_plain else {}), **schema}


def _within(schema: Mapping[str, Any], inner: object) -> Mapping[str, Any]:
    """A schema within another one, with the definitions that it may refer to."""
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {**definitions, **(inner if isinstance(inner, Mapping) else {})}
