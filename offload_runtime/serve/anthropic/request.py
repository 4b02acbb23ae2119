"""Reads the bodies of POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import Mapping
from typing import Any

from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.anthropic.content import read_messages, read_system
from offload_runtime.serve.anthropic.form import MessageForm
from offload_runtime.serve.api.asked import Asked, Offer
from offload_runtime.serve.api.fields import LONGEST_NAME, Fields, bad, shown
from offload_runtime.serve.api.sampling import LONGEST_STOP, MOST_NEW_TOKENS, MOST_STOPS, read_sampling
from offload_runtime.serve.api.tools import tool_arguments
from offload_runtime.text.reasoning_switch import THINKING_OFF, THINKING_ON

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING: Mapping[str, Mapping[str, object]] = {
    "enabled": THINKING_ON,
    "adaptive": THINKING_ON,
    "disabled": THINKING_OFF,
}


def read_request(body: Mapping[str, Any], offer: Offer) -> Asked:
    """The text that a body of /v1/messages asks for. Raises ApiError that names the field at fault."""
    fields = Fields(body)
    model, (prompt, several) = offer.read_model(fields), _read_prompt(fields)
    most = fields.whole("max_tokens", 1, MOST_NEW_TOKENS)
    if most is None:
        raise bad("max_tokens", "is missing: how many tokens the reply may have")
    arguments = {**prompt.arguments, **read_sampling(fields), "max_new_tokens": most, **_response_format(fields)}
    if (stops := fields.texts("stop_sequences", MOST_STOPS, LONGEST_STOP)) is not None:
        arguments["stop"] = stops
    stream = fields.flag("stream")
    _read_others(fields)
    fields.finish()
    return Asked((GenerationRequest(prompt.prompt, arguments),), MessageForm(model, several), stream)


def read_counted(body: Mapping[str, Any], offer: Offer) -> GenerationRequest:
    """The prompt whose tokens a body of /v1/messages/count_tokens wants to be counted. Raises ApiError likewise."""
    fields = Fields(body)
    offer.read_model(fields)
    prompt, _ = _read_prompt(fields)
    _response_format(fields)
    _read_others(fields)
    fields.finish()
    return prompt


def _read_prompt(fields: Fields) -> tuple[GenerationRequest, bool]:
    """The messages with tools and the switch for thoughts, and whether the reply may have several calls."""
    messages = [*read_system(fields), *read_messages(fields)]
    tools = fields.take("tools")
    if isinstance(tools, list):
        tools = [_tool(Fields.of(tool, f"tools[{number}]")) for number, tool in enumerate(tools)]
    choice, several = _read_choice(fields.below("tool_choice"))
    arguments = tool_arguments(tools, choice, "tools")
    if (thinking := fields.below("thinking")) is not None:
        arguments["template_arguments"] = _read_thinking(thinking)
    return GenerationRequest(messages, arguments), several


def _tool(fields: Fields) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    if (kind := fields.text("type")) not in (None, "custom"):
        what = f"{shown(kind)} is not supported: only tools of the client's own"
        raise bad(fields.path("type"), what, "unsupported_tool")
    name, description, schema = fields.needed("name"), fields.text("description"), fields.mapping("input_schema")
    # They change nothing here: caching is automatic, and calls are given whole.
    fields.ignore("cache_control", "eager_input_streaming", "input_examples", "strict")
    fields.only("allowed_callers", ["direct"])
    fields.only("defer_loading", False)
    fields.finish()
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _read_choice(fields: Fields | None) -> tuple[object, bool]:
    """The choice in OpenAI's form, and whether the reply may have several calls."""
    if fields is None:
        return None, True
    kind, name = fields.text("type"), fields.text("name", LONGEST_NAME)
    several = not fields.flag("disable_parallel_tool_use")
    fields.finish()
    if kind == "tool" and name is not None:
        return {"type": "function", "function": {"name": name}}, several
    if kind not in _CHOICES or name is not None:
        raise bad("tool_choice.type", f"must be auto, any, none, or tool with a name, not {shown(kind)}")
    return _CHOICES[kind], several


def _read_thinking(fields: Fields) -> dict[str, object]:
    """Variables of chat templates. How long a model thinks is its own choice, whatever the budget."""
    kind = fields.choice("type", _THINKING)
    fields.whole("budget_tokens", 1, MOST_NEW_TOKENS)
    fields.ignore("display")
    fields.finish()
    return dict(_THINKING[kind])


def _response_format(fields: Fields) -> dict[str, Any]:
    """The argument for a schema that the reply is to follow, if there is one."""
    config = fields.below("output_config")
    if config is None:
        return {}
    config.ignore("effort")
    form = config.below("format")
    config.finish()
    if form is None:
        return {}
    kind, schema = form.text("type"), form.mapping("schema")
    form.finish()
    if kind != "json_schema" or schema is None:
        raise bad("output_config.format", 'must be {"type": "json_schema", "schema": {…}}')
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}}


def _read_others(fields: Fields) -> None:
    fields.mapping("metadata")
    fields.ignore("service_tier", "inference_geo", "cache_control", "user_profile_id")
    fields.only("speed", "standard")
    fields.refuse("container", "nothing is run here")
    fields.refuse("mcp_servers", "the client asks them, and offers their tools in tools")
    fields.refuse("context_management", "the client chooses what it sends")
