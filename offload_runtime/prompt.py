"""From what a caller hands in to token ids."""

from collections.abc import Callable, Mapping, Sequence

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from offload_runtime.errors import ModelFilesError, PromptError, UsageError

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Raw text, token ids, or chat messages with "role" and "content"."""

_MARK = "\u2063mark\u2063"  # a text no template treats specially


def is_chat(prompt: Prompt) -> bool:
    """Whether the prompt is a list of chat messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def encode_prompt(prompt: Prompt, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> list[int]:
    """Token ids: raw text as the tokenizer encodes it, messages through the chat template, ids as they are."""
    if isinstance(prompt, str):
        return list(tokenizer()(prompt).input_ids)
    if is_chat(prompt):
        text = render_chat(tokenizer(), prompt, add_generation_prompt=True)  # type: ignore[arg-type]
        return list(tokenizer()(text, add_special_tokens=False).input_ids)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
        raise PromptError("a prompt is text, a list of token ids, or a list of messages; this list mixes other things")
    return list(prompt)  # type: ignore[arg-type]


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> str:
    """The text the model's chat template makes of the messages.

    Raises UsageError for a model without one and for messages that the template refuses, ModelFilesError for a template
    that is none.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "this model has no chat template: it continues text and does not answer.\n"
            "  use its -Instruct or -Chat variant, or --raw to continue your text;\n"
            "  a template published elsewhere is read from chat_template.jinja beside the weights"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateSyntaxError as error:
        raise ModelFilesError(f"the model's chat template is damaged: {error}") from error
    except TemplateError as error:
        raise UsageError(f"the model's chat template refuses this conversation: {error}") from error
    assert isinstance(text, str)
    return text


def turn_end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special token that the chat template puts behind a reply, if it puts one."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    _, _, after = render_chat(tokenizer, messages, add_generation_prompt=False).rpartition(_MARK)
    ids = tokenizer(after.lstrip(), add_special_tokens=False).input_ids
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return frozenset(ids[:1]) & special
