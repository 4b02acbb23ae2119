"""The decode loop: draft a tree, score it in one pass of the target, keep what verification accepts."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from offload_runtime.errors import Interrupted, ModelFilesError
from offload_runtime.model.model import Model, never
from offload_runtime.model.not_finite import describe_fault
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.methods import PLAIN
from offload_runtime.speculation.target import Target
from offload_runtime.speculation.tree_policy import PassFacts, PlainDecoding, TreePolicy
from offload_runtime.speculation.verification import Scored, verify
from offload_runtime.text.tools.tool_call import ToolCall
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.logprobs import TokenLogprobs, token_logprobs
from sequoia_tree.verification.verify import AcceptedPath


@dataclass(frozen=True)
class Step:
    """What one step of the loop produced, and what it cost.

    token_ids: the new tokens, at least one unless the step was interrupted.
    method: how it drafted; "none" without a tree. drafted, accepted: draft tokens in the tree, and how many of them
    verification accepted.
    predicted_tokens, predicted_seconds: expected when the tree was chosen; None if there was no prediction.
    draft_seconds, target_seconds: wall time. streamed_bytes: bytes over the link, including those to read the prompt.
    finish_reason: None until the last step, then "stop" (an end token or stop string), "length" or "interrupted".
    read_tokens: tokens of the text that were not in the target's cache yet.
    logprobs: one entry per token, if the request asks for them. tool_calls: those that the step completed.
    stop_string: the one that has ended the text, if one has.
    """

    token_ids: list[int]
    drafted: int
    accepted: int
    draft_seconds: float
    target_seconds: float
    streamed_bytes: int
    finish_reason: str | None = None
    text: str = ""
    reasoning: str = ""
    method: str = "none"
    predicted_tokens: float | None = None
    predicted_seconds: float | None = None
    read_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    stop_string: str | None = None


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


class Decoder:
    """Runs requests one after the other over the caches of one target and an optional draft.

    policy: chooses how each step drafts. text: the caches hold a prefix of it; a new prompt is not read again as far
    as it begins with the same tokens.
    """

    def __init__(self, target: Target, draft: Draft | None = None, policy: TreePolicy | None = None):
        self._target, self._draft, self._policy = target, draft, policy or PlainDecoding()
        self.text: list[int] = []

    def steps(self, request: Request) -> Iterator[Step]:
        """Yield steps until an end token, `max_new_tokens`, or an interruption.

        Closing the iterator early is safe. Several iterators may take turns: each then reads its own text again.
        """
        text = list(request.prompt)
        most_tokens = len(text) + request.max_new_tokens
        finish_reason = None
        try:
            while finish_reason is None:
                self._take_up(text, request)
                step = self._step(request, most_tokens - len(text))
                finish_reason = step.finish_reason
                yield step
        finally:
            if self.text is text:  # otherwise another iterator has taken over and rolled back; it may be in a pass
                self._rollback()

    def _take_up(self, text: list[int], request: Request) -> None:
        """Switch to `text`, which grows from here on. The caches keep the prefix shared with the previous text."""
        common = common_prefix(self.text, text) if self.text is not text else None
        self.text = text
        for model in self._models():
            model.should_stop = request.should_stop
            if common is not None:
                model.take_up(request.prompt_length, common)
            model.reaches(len(text))

    def _models(self) -> list[Model]:
        return [self._target.model, *([self._draft.model] if self._draft else [])]

    def _rollback(self) -> None:
        for model in self._models():
            model.cache.rollback()

    def _step(self, request: Request, most_tokens: int) -> Step:
        """One tree, one pass, one accepted path. An interrupted step leaves text and caches unchanged."""
        streamed = self._target.model.streamed_total
        started = chosen_at = drafted_at = time.perf_counter()
        tokens: list[int] = []
        drafted, accepted, finish_reason = 0, 0, None
        logprobs: tuple[TokenLogprobs, ...] = ()
        unread = len(self.text) - min(self._target.model.cache.length, len(self.text) - 1)
        method = PLAIN
        try:
            method = self._policy.method(request.sampling, len(self.text), request.repeatable)
            chosen_at = time.perf_counter()
            drawn = method.grow(self.text, request.sampling, request.generator)
            if method.draft_rows and drawn.drawn == 1 and not drawn.has_distribution:
                self._drop_draft()
            drafted_at = time.perf_counter()
            logits = self._target.score(self.text, drawn)
        except Interrupted:
            self._rollback()
            finish_reason = "interrupted"
        else:
            scored = Scored.of(drawn, logits, self.text, request.sampling)
            accepted_path = verify(scored, method.rule, request.generator)
            if accepted_path.bonus < 0:
                raise self._not_finite()
            self._policy.learn(method, scored, accepted_path)
            self._commit(drawn, accepted_path)
            drafted, accepted = drawn.tree.size - 1, len(accepted_path.path)
            accepted_tokens = [drawn.tokens[node] for node in accepted_path.path]
            room = self._target.model.room(len(self.text))
            tokens = [*accepted_tokens, accepted_path.bonus][:room]
            tokens, finish_reason = cut(tokens, request.end_token_ids, most_tokens)
            self.text += tokens
            if request.top_logprobs is not None:
                logprobs = token_logprobs(logits, accepted_path, tokens, request.top_logprobs)
        step = Step(
            token_ids=tokens,
            drafted=drafted,
            accepted=accepted,
            draft_seconds=drafted_at - started,
            target_seconds=time.perf_counter() - drafted_at,
            streamed_bytes=self._target.model.streamed_total - streamed,
            finish_reason=finish_reason,
            method=method.name if drafted else PLAIN.name,
            predicted_tokens=method.predicted_tokens,
            predicted_seconds=method.predicted_seconds,
            read_tokens=unread if tokens else 0,
            logprobs=logprobs,
        )
        if tokens:
            fresh_text = self._target.text_rows - 1
            facts = PassFacts(accepted + 1, drafted + 1, fresh_text, drafted_at - chosen_at, step.target_seconds)
            self._policy.passed(method, request.sampling, facts)
        return step

    def _drop_draft(self) -> None:
        """Continue without a draft that gives NaN at the root; the reply stays exact."""
        assert self._draft is not None
        fault = describe_fault(self._draft.model, self.text)
        self._draft, self._policy = None, PlainDecoding()
        warnings.warn(
            f"the draft computes values that are not finite ({fault}): the reply goes on without it. Its files may be "
            "damaged; choose another with --draft",
            stacklevel=2,
        )

    def _not_finite(self) -> ModelFilesError:
        self._rollback()
        fault = describe_fault(self._target.model, self.text)
        self.text = []
        return ModelFilesError(
            f"the model computes values that are not finite, so no token can be chosen ({fault}).\n"
            "  Its files may be damaged: compare them with where they come from, or download them again.\n"
            "  --dtype float32   where float16 may have been too narrow for this model"
        )

    def _commit(self, drawn: DraftTree, accepted_path: AcceptedPath) -> None:
        self._target.commit(accepted_path.path)
        if self._draft is not None:
            self._draft.commit(drawn.draft_columns(accepted_path.path))


def cut(tokens: list[int], end_token_ids: frozenset[int], most_tokens: int) -> tuple[list[int], str | None]:
    """The tokens up to and including the first end token, at most `most_tokens`; and the finish reason, if any."""
    kept = tokens[:most_tokens]
    end = next((i for i, token in enumerate(kept) if token in end_token_ids), None)
    if end is not None:
        return kept[: end + 1], "stop"
    return kept, "length" if len(tokens) >= most_tokens else None


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two texts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
