"""Turns a caller's prompt into token ids."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from loaders.checkpoint.model_source import load_tokenizer, model_source
from loaders.tokenizers.chat_templates import read_template
from loaders.tokenizers.trial import panics_explained
from offload_runtime.errors import OffloadError, PromptError
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.detokenize import check_whole_characters
from offload_runtime.text.reply_sections import inner_tokens
from offload_runtime.text.tools.tool_definitions import TOOL_TEMPLATE, Tools

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Raw text, token ids, or chat messages with "role" and "content"."""

_MARK = "\u2063mark\u2063"  # a text no template treats specially


def is_chat(prompt: Prompt) -> bool:
    """Whether the prompt is a list of chat messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def messages_of(prompt: Prompt) -> Sequence[Mapping[str, Any]]:
    """The messages that a prompt consists of; none if it is text or token ids."""
    return prompt if is_chat(prompt) else ()  # type: ignore[return-value]


def chat_tokenizer(directory: Path, chat_template: Path | None) -> PreTrainedTokenizerBase:
    """A model's tokenizer; a given file's chat template replaces its own."""
    tokenizer = load_tokenizer(directory)
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    else:
        setattr(tokenizer, TOOL_TEMPLATE, model_source(directory).chat_template(for_tools=True))
    return tokenizer


@panics_explained("the prompt")
def encode_prompt(
    prompt: Prompt,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    template_arguments: Mapping[str, Any] | None = None,
    tools: Tools | None = None,
) -> list[int]:
    """Token ids: raw text as the tokenizer encodes it, messages through the chat template, ids as they are.

    tools: what the model is told that it may call; for messages, since ids have that in them already.
    """
    if isinstance(prompt, str):
        check_whole_characters(prompt)
        return list(tokenizer()(prompt).input_ids)
    if is_chat(prompt):
        text = render_chat(tokenizer(), prompt, True, template_arguments, tools)  # type: ignore[arg-type]
        return list(tokenizer()(text, add_special_tokens=False).input_ids)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
        raise PromptError("a prompt is text, a list of token ids, or a list of messages; this list mixes other things")
    return list(prompt)  # type: ignore[arg-type]


def encode_turn(
    prompt: Prompt,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    template_arguments: Mapping[str, Any],
    tools: Tools,
) -> tuple[list[int], frozenset[int]]:
    """The token ids of a prompt, and the tokens that end a turn of its conversation."""
    ids = encode_prompt(prompt, tokenizer, template_arguments, tools)
    return ids, turn_end_tokens(tokenizer(), template_arguments, messages_of(prompt)) if is_chat(
        prompt
    ) else frozenset()


def turn_end_tokens(
    tokenizer: PreTrainedTokenizerBase,
    template_arguments: Mapping[str, Any] | None = None,
    messages: Sequence[Mapping[str, Any]] = (),
) -> frozenset[int]:
    """The special token that the chat template puts after a reply, if any.

    messages: a conversation; its messages before the user's first are used, since some templates need a system message.
    Some templates refuse a conversation that ends with a reply: they are tried with a longer one.
    """
    question = {"role": "user", "content": "?"}
    asked = [*takewhile(lambda message: message.get("role") not in ("user", "assistant"), messages), question]
    answered = [*asked, {"role": "assistant", "content": _MARK}]
    for conversation in (answered, [*answered, question]):
        try:
            text = render_chat(tokenizer, conversation, False, template_arguments)
        except OffloadError:
            continue
        _, found, after = text.rpartition(_MARK)
        if found:
            ids = tokenizer(after.lstrip(), add_special_tokens=False).input_ids
            special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
            return frozenset(ids[:1]) & special - inner_tokens(tokenizer)
    return frozenset()
