"""Checks the arguments of a call: prompt length, new tokens, stop strings, tools, seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.errors import ContextLengthError, PromptError, UsageError
from offload_runtime.generation.defaults import GenerationDefaults
from offload_runtime.text.detokenize import StopStrings
from offload_runtime.text.tools.tool_definitions import Tools
from sequoia_tree.verification.logprobs import MOST_TOP


@dataclass(frozen=True)
class CallLimits:
    """Limits of one target. context_length: most tokens in prompt and reply. has_text: there is a tokenizer."""

    spec: ModelSpec
    defaults: GenerationDefaults
    vocab_size: int
    context_length: int
    has_text: bool

    def check_prompt(self, ids: list[int]) -> None:
        """Raises PromptError for a prompt that is empty, too long, or holds ids outside the vocabulary."""
        if not ids:
            raise PromptError("the prompt is empty: there is nothing to continue")
        if len(ids) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, the context holds {self.context_length} for prompt and reply.\n"
                f"  {self._longer_context(len(ids))}"
            )
        if not all(0 <= token < self.vocab_size for token in ids):
            raise PromptError(f"the prompt has token ids outside the vocabulary (0 to {self.vocab_size - 1})")

    def _longer_context(self, tokens: int) -> str:
        """Advice for a prompt of `tokens` tokens."""
        most = self.spec.max_positions
        if tokens >= most:
            return f"shorten the prompt: the model was made for {self.spec.positions_for_people} tokens"
        return f"shorten the prompt, or start with --context-length {min(2 * tokens, most)} if memory allows"

    def stop_strings(self, stop: str | Sequence[str] | None) -> StopStrings:
        """Those of the call, else of the model. Raises UsageError for invalid ones, or without a tokenizer."""
        if stop is None:
            stop = self.defaults.stop_strings
        if stop and not self.has_text:
            raise UsageError("stop strings need a tokenizer to be found with, and this model comes without one")
        try:
            return StopStrings([stop] if isinstance(stop, str) else stop or [])
        except ValueError as error:
            raise UsageError(str(error)) from error

    def tools(
        self,
        given: Sequence[Mapping[str, Any]] | None,
        choice: object,
        has_sections: bool,
        response_format: Mapping[str, Any] | None = None,
    ) -> Tools:
        """The tools of a call. has_sections: calls are told from text. Raises UsageError for invalid ones."""
        tools = Tools.of(given, choice)
        if tools and not (has_sections and self.has_text):
            raise UsageError(
                "tools need a chat: a prompt of messages (or their token ids), split_reasoning, and a tokenizer"
            )
        if tools.forced and response_format is not None:
            raise UsageError("a reply that must be a call follows no response_format: give one of the two")
        return tools

    def room(self, ids: list[int], max_new_tokens: int | None) -> int:
        """How many tokens may follow a prompt: limited by the context and by the call, or else by the model."""
        if max_new_tokens is not None and not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise UsageError(f"max_new_tokens must be a whole number from 1 up, not {max_new_tokens!r}")
        defaults, room = self.defaults, self.context_length - len(ids)
        if max_new_tokens is None:
            max_new_tokens = defaults.max_new_tokens
        if max_new_tokens is None and defaults.max_length is not None:
            max_new_tokens = defaults.max_length - len(ids)
            if max_new_tokens < 1:
                raise PromptError(
                    f"the prompt has {len(ids)} tokens, and the model's generation_config.json ends prompt and reply "
                    f"at max_length = {defaults.max_length}.\n  shorten the prompt, or give max_new_tokens, which goes "
                    "before it (in the chat: --max-new-tokens N or /set max_new_tokens N)"
                )
        return room if max_new_tokens is None else min(room, max_new_tokens)


def checked_top_logprobs(given: int | None) -> int | None:
    """`given`, the likeliest tokens to name with each token. Raises UsageError for an invalid number."""
    if given is not None and not (type(given) is int and 0 <= given <= MOST_TOP):
        raise UsageError(f"top_logprobs must be a whole number from 0 to {MOST_TOP}, or None, not {given!r:.80}")
    return given


def seeded(generator: torch.Generator, seed: int | None) -> torch.Generator:
    """The generator, seeded with `seed`, or randomly if it is None. Raises UsageError for an invalid seed."""
    try:
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"seed must be a whole number of at most 64 bits, not {seed!r}") from error
    return generator
