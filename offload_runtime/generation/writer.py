"""A generation in the decoder: what is asked for, and the text so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from offload_runtime.model.model import never
from sequoia_tree.shaping.settings import Sampling


@dataclass(frozen=True)
class Request:
    """One generation: the prompt's token ids and how to continue them.

    repeatable: the same seed must give the same text again, so trees must not depend on what was learnt.
    first_prompt: length of the original prompt, if `prompt` also holds tokens of the reply.
    top_logprobs: how many of the likeliest tokens to name with each token's log-probability; None for neither.
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_new_tokens: int
    end_token_ids: frozenset[int]
    generator: torch.Generator
    should_stop: Callable[[], bool] = never
    repeatable: bool = False
    first_prompt: int | None = None
    top_logprobs: int | None = None

    @property
    def prompt_length(self) -> int:
        """Tokens in the original prompt."""
        return len(self.prompt) if self.first_prompt is None else self.first_prompt

    def after(self, tokens: Sequence[int]) -> "Request":
        """The rest of the request after `tokens` were generated."""
        left = self.max_new_tokens - len(tokens)
        prompt = [*self.prompt, *tokens]
        return replace(self, prompt=prompt, max_new_tokens=left, first_prompt=self.prompt_length)


class Writer:
    """The text of one request, which grows, and the sequence of the caches that holds its beginning.

    sequence: None until the first pass.
    """

    def __init__(self, request: Request):
        self.request = request
        self.text = list(request.prompt)
        self.most_tokens = len(self.text) + request.max_new_tokens
        self.sequence: int | None = None

    @property
    def place(self) -> int:
        """The sequence, of a text that has one."""
        assert self.sequence is not None
        return self.sequence
