"""Applies a model's chat template to messages, in the form that the template expects."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from transformers import PreTrainedTokenizerBase

from offload_runtime.errors import ModelFilesError, PromptError, UsageError
from offload_runtime.text.detokenize import check_whole_characters
from offload_runtime.text.template_process import REMEDY, TemplateFailedError, template_process

Message = Mapping[str, Any]
Form = Mapping[str, str]
"""How each role's content is given: as one text, as parts, or as parts that include its thoughts."""

TEXT, PARTS, THOUGHTS = "text", "parts", "parts with thoughts"
_MARK = "sequoiamark{}x"  # a text that templates neither know nor change: letters and digits
_WRITTEN_OUT = ("'type':", '"type":')  # written by a template that prints the list of parts itself


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """Render messages with the model's chat template; `arguments` are variables of the template.

    "content" is text, or a list of {"type": "text", "text": ...}; "reasoning_content" holds an assistant's thoughts.
    Raises UsageError for a model without a template and for messages that the template refuses, PromptError for invalid
    messages, and ModelFilesError for a template that is damaged, fails, does not end, or omits what the user says.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "this model has no chat template: it continues text and does not answer.\n"
            "  use its -Instruct or -Chat variant, or --raw to continue your text;\n"
            "  --chat-template FILE takes a template that is published elsewhere"
        )
    return _Renderer(tokenizer, add_generation_prompt, arguments or {}).render([_checked(one) for one in messages])


class _Renderer:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool, arguments: Mapping[str, Any]):
        self._template = str(tokenizer.chat_template)
        self._variables = {
            **{name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
            **{"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt},
            **arguments,
        }

    def render(self, messages: list[dict[str, Any]]) -> str:
        text = self._rendered(messages, self._form(messages))
        check_whole_characters(text)
        return text

    def _rendered(self, messages: list[dict[str, Any]], form: Form) -> str:
        given = [_in_form(message, form[message["role"]]) for message in messages]
        return template_process().render(self._template, {**self._variables, "messages": given})

    def _form(self, messages: list[dict[str, Any]]) -> Form:
        """The form in which the template writes most of the content; plain text, as most templates want it, on a tie.

        Tried with marks in place of the messages' texts: a template that loops over parts writes nothing of a text.
        """
        roles = list(dict.fromkeys(message["role"] for message in messages))
        marks = {role: _MARK.format(number) for number, role in enumerate(roles)}
        marked = [{**message, "content": marks[message["role"]]} for message in messages]
        choices = sorted(product((TEXT, PARTS), repeat=len(roles)), key=lambda forms: len(set(forms)))
        best: Form = {}
        most, first_error = -1, None
        for form in (dict(zip(roles, choice)) for choice in choices):
            try:
                text = self._rendered(marked, form).casefold()
            except (TemplateFailedError, UsageError) as error:
                first_error = first_error or error
                continue
            written = {role for role in roles if marks[role] in text} if _is_prose(text) else set()
            if len(written) > most and ("user" in written or "user" not in roles):
                best, most = form, len(written)
            if most == len(roles):
                break
        if most < 0:
            raise first_error or ModelFilesError(
                f"the model's chat template leaves out what the user says.\n  {REMEDY}"
            )
        return self._with_thoughts(marked, best)

    def _with_thoughts(self, marked: list[dict[str, Any]], form: Form) -> Form:
        """Mistral's and Cohere's templates read thoughts as parts of a reply, others as a key of its message."""
        thought = _MARK.format("thought")
        marked = [{**one, **_thoughts(thought)} if one.get("reasoning_content") else one for one in marked]
        if (
            not any(one.get("reasoning_content") for one in marked)
            or thought in self._rendered(marked, form).casefold()
        ):
            return form
        other = {**form, "assistant": THOUGHTS}
        try:
            text = self._rendered(marked, other).casefold()
            return other if thought in text and _is_prose(text) else form
        except (TemplateFailedError, UsageError):
            return form


def _is_prose(text: str) -> bool:
    return not any(sign in text for sign in _WRITTEN_OUT)


def _in_form(message: dict[str, Any], form: str) -> dict[str, Any]:
    if form == TEXT:
        return message
    thought = message.get("reasoning_content") if form == THOUGHTS else None
    thoughts = [{"type": "thinking", "thinking": thought}] if thought else []
    return {**message, "content": [*thoughts, {"type": "text", "text": message["content"]}]}


def _thoughts(text: str) -> dict[str, str]:
    """The thoughts, under every name that templates use for them."""
    return {"reasoning_content": text, "thinking": text}


def _checked(message: Message) -> dict[str, Any]:
    """The message with its content as one text, and its thoughts under every name that templates use."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "\n".join(str(part.get("text", "")) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise PromptError(
            'a message has "role" and "content", both text; content may also be a list of parts of type "text"'
        )
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise PromptError('"reasoning_content" of a message is text: what was thought before its content')
    return {**message, "content": content, **(_thoughts(reasoning) if reasoning else {})}
