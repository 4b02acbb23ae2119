"""Calls of tools in place of an answer that follows a response format."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from offload_runtime.errors import UsageError
from offload_runtime.grammar.thoughts import single_token
from offload_runtime.text.tools.call_formats import HARMONY_CALLS, call_format
from offload_runtime.text.tools.tool_definitions import Tools, template_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HARMONY_END = "<|call|>"


@dataclass(frozen=True)
class CallTokens:
    """begin: the token that a call begins with, where the answer would; whatever follows is free.

    end: the token by which a call among the thoughts ends the reply.
    """

    begin: int | None = None
    end: int | None = None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", tools: Tools) -> "CallTokens":
        """Those of a model that is offered `tools`. Raises UsageError if its calls cannot be told from an answer."""
        if not tools:
            return cls()
        form = call_format(template_for(tokenizer, tools))
        if form is HARMONY_CALLS:
            return cls(end=single_token(tokenizer, _HARMONY_END))
        begin = single_token(tokenizer, form.begin)
        if form.bare or begin is None:
            raise UsageError(
                "response_format beside tools: this model's calls begin with no token of their own, so they cannot be "
                "told from an answer in that format. Give one of the two"
            )
        return cls(begin=begin)
