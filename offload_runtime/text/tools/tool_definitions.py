"""The tools that a caller offers to a model."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from offload_runtime.errors import UsageError
from offload_runtime.text.tools.tool_call import json_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOL_TEMPLATE = "tool_use_template"  # a tokenizer's attribute
_NAME = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
_KINDS: Mapping[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    dict: ("object",),
    list: ("array",),
    type(None): ("null",),
}
_AS_PYTHON = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class Tools:
    """Definitions in the form that chat templates take: {"type": "function", "function": {"name": ..., ...}}.

    forced: names of which one must be called.
    """

    definitions: tuple[Mapping[str, Any], ...] = ()
    forced: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Sequence[Mapping[str, Any]] | None, choice: object = None) -> "Tools":
        """Checked definitions; what templates read but callers may leave out is filled in. Raises UsageError.

        choice: None or "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.
        """
        if given is None:
            given = ()
        if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
            raise UsageError(f"tools is a list of definitions, not {given!r:.80}")
        tools = cls(tuple(_checked(number, one) for number, one in enumerate(given)))
        if len(tools.names) < len(tools.definitions):
            raise UsageError("tools: two of them have the same name")
        return cls() if choice == "none" else replace(tools, forced=tools._chosen(choice))

    def _chosen(self, choice: object) -> frozenset[str]:
        """The names of which `choice` says that one must be called."""
        if choice in (None, "auto"):
            return frozenset()
        function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice != "required" and not isinstance(name, str):
            raise UsageError(f'tool_choice is "auto", "none", "required" or names a function, not {choice!r:.80}')
        chosen = self.names if choice == "required" else self.names & {name}
        if not chosen:
            raise UsageError(
                f"tool_choice: there is no tool {name!r:.80}" if name else "tool_choice: there are no tools"
            )
        return chosen

    def __bool__(self) -> bool:
        return bool(self.definitions)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tools":
        return self

    @property
    def names(self) -> frozenset[str]:
        return frozenset(one["function"]["name"] for one in self.definitions)

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of a tool's arguments; empty for a tool that is not offered."""
        found = (one["function"]["parameters"] for one in self.definitions if one["function"]["name"] == name)
        return next(found, {})

    def typed(self, name: str, argument: str, text: str, text_unless_stated: bool = False) -> Any:
        """An argument that was written as plain text, as a value of the type that the tool's schema states for it.

        Text that is not of that type stays text. Where no type is stated, mappings and lists are read, or nothing is.
        """
        properties = self.parameters(name).get("properties")
        kinds = self.kinds(properties.get(argument) if isinstance(properties, Mapping) else None)
        try:
            value = json_value(text)
        except ValueError:
            value = _AS_PYTHON.get(text.strip(), text)
        if isinstance(value, float) and value.is_integer() and "integer" in kinds:
            value = int(value)
        open_kinds = set() if text_unless_stated else {"object", "array"}
        return value if set(_KINDS.get(type(value), ())) & (kinds or open_kinds) else text

    @staticmethod
    def kinds(schema: object) -> set[str]:
        """The types that a schema states, in itself or in its alternatives."""
        if not isinstance(schema, Mapping):
            return set()
        stated = schema.get("type")
        kinds = {one for one in (stated if isinstance(stated, list) else [stated]) if isinstance(one, str)}
        for key in ("anyOf", "oneOf"):
            alternatives = schema.get(key)
            kinds = kinds.union(*map(Tools.kinds, alternatives)) if isinstance(alternatives, list) else kinds
        return kinds


def template_for(tokenizer: "PreTrainedTokenizerBase", tools: Tools) -> str:
    """The chat template for a prompt with these tools: some models have one of their own for that."""
    own = getattr(tokenizer, TOOL_TEMPLATE, None) if tools else None
    return str(own or tokenizer.chat_template or "")


def _checked(number: int, given: object) -> Mapping[str, Any]:
    where = f"tools[{number}]"
    if not isinstance(given, Mapping) or given.get("type", "function") != "function":
        kind = given.get("type") if isinstance(given, Mapping) else given
        raise UsageError(f'{where}: only tools of "type": "function" are known, not {kind!r:.80}')
    function = given.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f'{where}: "function" is a mapping with a "name" of at most 128 letters, digits and any of _.:/-, '
            f"not {function!r:.80}"
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UsageError(f"{where}: the parameters of {name} are a JSON schema, not {parameters!r:.80}")
    if not isinstance(function.get("description") or "", str):
        raise UsageError(f"{where}: the description of {name} is text")
    filled = {"description": function.get("description") or "", "parameters": dict(parameters or _NO_PARAMETERS)}
    definition = {"type": "function", "function": {"name": name, **filled, **_others(function)}}
    try:
        json.dumps(definition, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: the definition of {name} is not JSON ({error})") from error
    return definition


def _others(function: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in function.items() if key not in ("name", "description", "parameters")}
