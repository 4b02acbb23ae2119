"""Applies a model's chat template to messages, in the form that the template expects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from transformers import PreTrainedTokenizerBase

from offload_runtime.errors import ModelFilesError, UsageError
from offload_runtime.text.detokenize import check_whole_characters
from offload_runtime.text.message_forms import (
    PARTS,
    TEXT,
    THOUGHTS,
    Form,
    Message,
    calls_in_text,
    checked,
    text_among_thoughts,
    with_thoughts,
)
from offload_runtime.text.template_process import REMEDY, TemplateFailedError, template_process
from offload_runtime.text.tools.call_formats import known_format
from offload_runtime.text.tools.json_bodies import read_json
from offload_runtime.text.tools.tool_definitions import Tools, template_for

_START = "sequoiamark"
_MARK = _START + "{}x"  # a text that templates neither know nor change: letters and digits
_KEY = "sequoiakey"
# Written by a template that prints parts of a content, or arguments, as Python or JSON has them.
_LISTED = (f"'text': '{_START}", f'"text": "{_START}', f'"text":"{_START}', f"'thinking': '{_START}")
_WRITTEN_OUT = (*_LISTED, f"{{'{_KEY}", f'\\"{_KEY}')


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    arguments: Mapping[str, Any] | None = None,
    tools: Tools | None = None,
) -> str:
    """Render messages with the model's chat template; `arguments` are variables of the template.

    "content" is text, or a list of {"type": "text", "text": ...}; "reasoning_content" holds an assistant's thoughts,
    "tool_calls" its calls, in OpenAI's form; messages with the role "tool" hold the results. tools: may be called.
    Raises UsageError for a model without a template, for messages that the template refuses, and where it has no place
    for tools or calls; PromptError for invalid messages, and ModelFilesError for a template that is damaged, fails,
    does not end, or omits what the user says.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "this model has no chat template: it continues text and does not answer.\n"
            "  use its -Instruct or -Chat variant, or --raw to continue your text;\n"
            "  --chat-template FILE takes a template that is published elsewhere"
        )
    return _Renderer(tokenizer, add_generation_prompt, arguments or {}, tools or Tools()).render(checked(messages))


class _Renderer:
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        add_generation_prompt: bool,
        arguments: Mapping[str, Any],
        tools: Tools,
    ):
        self._template = template_for(tokenizer, tools)
        self._variables = {
            **{name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
            **{"tools": tools.definitions or None, "documents": None, "add_generation_prompt": add_generation_prompt},
            **arguments,
        }
        self._tools = tools

    def render(self, messages: list[dict[str, Any]]) -> str:
        messages, form = self._accepted(messages)
        text = self._rendered(messages, form)
        if self._tools and text == self._without_tools(messages, form):
            raise UsageError(
                "this model's chat template has no place for tools: it cannot be told of them.\n"
                "  --chat-template FILE takes a template that has one"
            )
        check_whole_characters(text)
        return text

    def _accepted(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Form]:
        """The messages, or the same in other words, that the template takes, and their form."""
        first_error = None
        for others in self._variants(messages):
            try:
                return others, self._form(others)
            except (TemplateFailedError, UsageError) as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error

    def _variants(self, messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        yield messages
        if not any("tool_calls" in message for message in messages):
            return
        yield [text_among_thoughts(message) for message in messages]
        form = known_format(self._template)
        if form and form.begin and form.read is read_json:
            yield [calls_in_text(message, form.begin, form.end) for message in messages]

    def _without_tools(self, messages: list[dict[str, Any]], form: Form) -> str | None:
        try:
            return self._rendered(messages, form, tools=None)
        except (TemplateFailedError, UsageError):
            return None  # a template that is only for prompts with tools

    def _rendered(self, messages: list[dict[str, Any]], form: Form, **variables: Any) -> str:
        given = {**self._variables, "messages": form.apply(messages), **variables}
        return template_process().render(self._template, given)

    def _form(self, messages: list[dict[str, Any]]) -> Form:
        """The form in which the template writes most of the messages; the plainest one on a tie.

        Tried with marks in place of the messages' texts: a template that loops over parts writes nothing of a text.
        """
        marked, marks = _marked(messages)
        best, most, first_error = None, -1, None
        for form in self._forms(messages):
            try:
                text = self._rendered(marked, form).casefold()
            except (TemplateFailedError, UsageError) as error:
                first_error = first_error or error
                continue
            written = {name for name, mark in marks.items() if mark in text} if _is_prose(text) else set()
            if len(written) > most and ("user" in written or "user" not in marks):
                best, most = form, len(written)
            if most == len(marks):
                break
        if best is None:
            raise first_error or ModelFilesError(
                f"the model's chat template leaves out what the user says.\n  {REMEDY}"
            )
        self._check_calls(marked, marks, best)
        return self._with_thoughts(marked, best)

    def _forms(self, messages: list[dict[str, Any]]) -> Iterator[Form]:
        roles = list(dict.fromkeys(message["role"] for message in messages))
        contents = sorted(product((TEXT, PARTS), repeat=len(roles)), key=lambda forms: len(set(forms)))
        counts = [len(message.get("tool_calls", ())) for message in messages]
        spellings = product((False, True)[: 1 + any(counts)], (False, True)[: 1 + (max(counts, default=0) > 1)])
        short_ids = any(counts) and "length != 9" in self._template  # Mistral's, up to version 7
        for written_arguments, one_call in spellings:
            for choice in contents:
                yield Form(dict(zip(roles, choice)), written_arguments, one_call, short_ids)

    def _check_calls(self, marked: list[dict[str, Any]], marks: Mapping[str, str], form: Form) -> None:
        """Raise UsageError where the template leaves out calls or their results."""
        needed = [name for name in marks if name == "tool" or name.startswith("call ")]
        text = self._rendered(marked, form).casefold() if needed else ""
        if any(marks[name] not in text for name in needed):
            raise UsageError("this model's chat template has no place for calls of tools and their results")

    def _with_thoughts(self, marked: list[dict[str, Any]], form: Form) -> Form:
        """Mistral's and Cohere's templates read thoughts as parts of a reply, others as a key of its message."""
        thought = _MARK.format("thought")
        marked = [{**one, **with_thoughts(thought)} if one.get("reasoning_content") else one for one in marked]
        if (
            not any(one.get("reasoning_content") for one in marked)
            or thought in self._rendered(marked, form).casefold()
        ):
            return form
        other = replace(form, contents={**form.contents, "assistant": THOUGHTS})
        try:
            text = self._rendered(marked, other).casefold()
            return other if thought in text and _is_prose(text) else form
        except (TemplateFailedError, UsageError):
            return form


def _marked(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The messages with marks in place of texts and arguments, and each role's and call's mark."""
    roles = list(dict.fromkeys(message["role"] for message in messages if message["content"]))
    marks = {role: _MARK.format(number) for number, role in enumerate(roles)}
    marked = []
    for message in messages:
        marked.append({**message, "content": marks[message["role"]] if message["content"] else ""})
        calls = []
        for call in message.get("tool_calls", ()):
            name = f"call {len(marks)}"
            marks[name] = _MARK.format(f"call{len(marks)}")
            calls.append({**call, "function": {**call["function"], "arguments": {_KEY: marks[name]}}})
        marked[-1] |= {"tool_calls": calls} if calls else {}
    return marked, marks


def _is_prose(text: str) -> bool:
    return not any(sign in text for sign in _WRITTEN_OUT)
