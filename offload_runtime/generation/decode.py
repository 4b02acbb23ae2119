"""The decode loop: draft trees, score them in one pass of the target, keep what verification accepts."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from offload_runtime.errors import Interrupted, ModelFilesError, OffloadError
from offload_runtime.generation.sequences import LEAST_COPIED, Sequences, common_prefix
from offload_runtime.generation.writer import Writer
from offload_runtime.model.model import Model
from offload_runtime.model.not_finite import describe_fault
from offload_runtime.prompt_cache.prompt_cache import PromptCache
from offload_runtime.speculation.draft import Draft, Growth
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.growth import or_error, run_growths
from offload_runtime.speculation.methods import PLAIN, Method
from offload_runtime.speculation.target import Target
from offload_runtime.speculation.tree_policy import PassFacts, Situation, TextFacts, TreePolicy
from offload_runtime.speculation.verification import Scored, verify
from offload_runtime.text.tools.tool_call import ToolCall
from sequoia_tree.drafting.end_tokens import up_to_end
from sequoia_tree.tree import Tree
from sequoia_tree.verification.logprobs import TokenLogprobs, token_logprobs


@dataclass(frozen=True)
class Step:
    """What one step of the loop produced, and what it cost.

    token_ids: the new tokens, at least one unless the step was interrupted or, where texts share passes, only read.
    method: how it drafted; "none" without a tree. drafted, accepted: draft tokens in the tree, and how many of them
    verification accepted.
    predicted_tokens, predicted_seconds: expected when the tree was chosen; None if there was no prediction.
    draft_seconds, target_seconds: wall time. streamed_bytes: bytes over the link, including those to read the prompt;
    of the whole pass, whoever shared it.
    finish_reason: None until the last step, then "stop" (an end token or stop string), "length" or "interrupted".
    read_tokens: tokens of the text that the step read, since they were not in the target's cache yet.
    logprobs: one entry per token, if the request asks for them. tool_calls: those that the step completed.
    stop_string: the one that has ended the text, if one has.
    tree: what was drafted, the root alone without a draft; None without a pass. path: its accepted nodes, from the
    root's child downwards. pieces: the part of `text` that each token completed; the last has all that the end adds.
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
    tree: Tree | None = None
    path: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()


_STOPPED = Step([], 0, 0, 0.0, 0.0, 0, "interrupted")
_WAITING = Step([], 0, 0, 0.0, 0.0, 0)  # of a text that had no rows in the pass


@dataclass
class _Turn:
    """One text's part in a pass. unread: tokens that the target has not cached. reads: of a text that gets no tree,
    how many of them it reads."""

    writer: Writer
    unread: int
    method: Method
    reads: int | None = None
    drawn: DraftTree | None = None
    error: OffloadError | None = None  # in drafting: then it takes no part in the pass
    logits: Tensor | None = None


@dataclass
class _Clock:
    """When a pass began, and had chosen and drafted its trees; streamed: bytes that had crossed the link before."""

    streamed: int
    started: float
    chosen: float = 0.0
    drafted: float = 0.0


class Decoder:
    """Writes texts over the caches of one target and an optional draft, with one tree of each text in a pass.

    policy: chooses how each step drafts. A new text is not read as far as the caches, or `stored`, hold one that begins
    like it.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | None = None,
        policy: TreePolicy | None = None,
        stored: PromptCache | None = None,
    ):
        self._target, self._draft, self._policy = target, draft, policy or TreePolicy()
        self._sequences = Sequences(self._models(), stored)
        self._pass_seconds = 0.0  # of the latest pass

    @property
    def places(self) -> int:
        """Most texts that can share a pass."""
        return len(self._sequences)

    def step(self, writers: Sequence[Writer], in_pieces: bool = False) -> list[Step | OffloadError]:
        """A step of each text, all in one pass, or the error that ends this text and not the others.

        A single text is read to its end in as many passes as that takes, unless `in_pieces`: then, as where texts share
        a pass, a step only reads what one pass has room for. An interrupted step leaves the text and its rows
        unchanged. Several callers may take turns: a text whose rows were taken is read again.
        """
        stopped = [writer for writer in writers if len(writers) > 1 and writer.request.should_stop()]
        active = self._ready([writer for writer in writers if writer not in stopped])
        done: dict[Writer, Step | OffloadError] = dict.fromkeys(stopped, _STOPPED)
        if active := self._sequences.take_up(active, self._pass_seconds):
            for model in self._models():
                model.should_stop = partial(_all_stop, active)
            began = time.perf_counter()
            done |= zip(active, self._pass(active, in_pieces or len(writers) > 1))
            self._pass_seconds = time.perf_counter() - began
        return [done.get(writer, _WAITING) for writer in writers]

    def leave(self, writer: Writer) -> None:
        """A text takes part in no further step; its rows stay for texts that begin like it."""
        self._sequences.let_go(writer)

    def forget(self) -> None:
        """Drop all texts from the caches."""
        self._sequences.forget()

    def _models(self) -> list[Model]:
        models = [self._target.model, *([self._draft.model] if self._draft else [])]
        return list(dict.fromkeys(models))  # a target may draft for itself

    def _ready(self, writers: Sequence[Writer]) -> list[Writer]:
        """All but those that had better wait: another text is reading what they begin with, and they can copy it."""
        ready: list[Writer] = []
        for writer in writers:
            if writer.sequence is not None or self._gain_of_waiting(writer, ready) < LEAST_COPIED:
                ready.append(writer)
        return ready

    def _gain_of_waiting(self, writer: Writer, others: Sequence[Writer]) -> int:
        """Tokens at the beginning of a new text that one of the others has still to read itself."""
        gains = (
            min(common_prefix(other.text, writer.text), len(other.text) - 1) - self._sequences.cached(other)
            for other in others
        )
        return max(gains, default=0)

    def _pass(self, writers: Sequence[Writer], in_pieces: bool) -> list[Step | OffloadError]:
        """One tree of each text, one pass, one accepted path of each."""
        clock = _Clock(self._target.model.streamed_total, time.perf_counter())
        try:
            turns = self._turns(writers, in_pieces)
            clock.chosen = time.perf_counter()
            self._grow(turns)
            clock.drafted = time.perf_counter()
            self._score(turns, in_pieces)
        except Interrupted:
            for writer in writers:
                self._sequences.rollback(writer)
            clock.drafted = clock.drafted or time.perf_counter()
            return [self._timed(clock, _STOPPED) for _ in writers]
        outcomes = [self._finished(turn, clock) for turn in turns]
        self._report(turns, outcomes, clock)
        return outcomes

    def _turns(self, writers: Sequence[Writer], in_pieces: bool) -> list[_Turn]:
        """What each text does in the pass: those with the least to read get trees first, the rest is for reading."""
        turns = []
        for writer in writers:
            request = writer.request
            situation = Situation(request.sampling, len(writer.text), request.repeatable, len(writers))
            unread = len(writer.text) - self._sequences.cached(writer)
            drafts = self._draft is None or self._draft.can_follow(unread, len(writer.text))
            turns.append(_Turn(writer, unread, self._policy.method(situation) if drafts else PLAIN))
        left = self._target.most_rows
        for turn in sorted(turns, key=lambda turn: turn.unread) if in_pieces else ():
            rows = turn.unread - 1 + turn.method.most_nodes
            if rows > left:
                rows = turn.reads = min(left, turn.unread - 1)
            left -= rows
        return turns

    def _grow(self, turns: Sequence[_Turn]) -> None:
        """Draft the trees; the draft reads along with texts that are only read."""
        growths: list[Growth[object]] = []
        for turn in turns:
            request, text, place = turn.writer.request, turn.writer.text, turn.writer.place
            if turn.reads is None:
                growth = turn.method.growing(text, request.sampling, request.generator, place, request.end_token_ids)
                if self._draft and self._draft.must_read(turn.unread + turn.method.most_nodes, place):
                    growth = _after(self._draft.following(text, place), growth)
                growths.append(or_error(growth))
            elif self._draft and turn.reads:
                growths.append(self._draft.following(text[: len(text) - turn.unread + turn.reads], place))
            else:
                growths.append(_nothing())
        for turn, result in zip(turns, run_growths(growths, self._draft.run if self._draft else None)):
            turn.drawn = result if isinstance(result, DraftTree) else None
            turn.error = result if isinstance(result, OffloadError) else None
        for turn in turns:
            drawn = turn.drawn
            if self._draft and drawn and turn.method.draft_rows and drawn.drawn == 1 and not drawn.has_distribution:
                self._drop_draft(self._draft, turn.writer)

    def _score(self, turns: Sequence[_Turn], in_pieces: bool) -> None:
        target = self._target
        if not in_pieces:
            (turn,) = turns
            if turn.drawn:
                follow = partial(self._follow, turn.writer)
                turn.logits = target.score(turn.writer.text, turn.drawn, turn.writer.place, follow)
            return
        taking_part = [turn for turn in turns if turn.drawn or turn.reads]
        parts = [
            target.tree_part(turn.writer.text, turn.drawn, turn.writer.place)
            if turn.drawn
            else target.text_part(turn.writer.text, turn.reads or 0, turn.writer.place)
            for turn in taking_part
        ]
        for turn, logits in zip(taking_part, target.run(parts) if parts else ()):
            turn.logits = logits

    def _follow(self, writer: Writer) -> None:
        """Between two passes over one text: the draft reads along, if it must."""
        if self._draft and self._draft.must_read(self._target.most_rows, writer.place):
            run_growths([self._draft.following(writer.text, writer.place)], self._draft.run)

    def _finished(self, turn: _Turn, clock: _Clock) -> Step | OffloadError:
        try:
            if turn.error:
                raise turn.error
            return self._verified(turn, clock) if turn.drawn else self._read(turn, clock)
        except OffloadError as error:
            self._sequences.rollback(turn.writer)
            return error

    def _read(self, turn: _Turn, clock: _Clock) -> Step:
        if not turn.reads:
            return _WAITING
        self._target.model.cache.sequences[turn.writer.place].commit(range(turn.reads))
        return self._timed(clock, replace(_WAITING, read_tokens=turn.reads))

    def _verified(self, turn: _Turn, clock: _Clock) -> Step:
        writer, drawn, logits = turn.writer, turn.drawn, turn.logits
        request = writer.request
        assert drawn is not None and logits is not None
        scored = Scored.of(drawn, logits, writer.text, request.sampling)
        accepted_path = verify(scored, turn.method.rule, request.generator)
        if accepted_path.bonus < 0:
            raise self._not_finite(writer)
        self._policy.learn(turn.method, scored, accepted_path)
        tokens = [*(drawn.tokens[node] for node in accepted_path.path), accepted_path.bonus]
        tokens = tokens[: self._target.model.room(len(writer.text))]
        tokens, finish_reason = cut(tokens, request.end_token_ids, writer.most_tokens - len(writer.text))
        path = accepted_path.path[: len(tokens) - 1]  # the last token begins the next tree
        self._target.commit(path, writer.place)
        if self._draft is not None:
            self._draft.commit(drawn.draft_columns(path), writer.place)
        logprobs: tuple[TokenLogprobs, ...] = ()
        if request.top_logprobs is not None:
            logprobs = token_logprobs(logits, accepted_path, tokens, request.top_logprobs)
        writer.text += tokens
        method, drafted = turn.method, drawn.tree.size - 1
        step = Step(
            token_ids=tokens,
            drafted=drafted,
            accepted=len(accepted_path.path),
            draft_seconds=0.0,
            target_seconds=0.0,
            streamed_bytes=0,
            finish_reason=finish_reason,
            method=method.name if drafted else PLAIN.name,
            predicted_tokens=method.predicted_tokens,
            predicted_seconds=method.predicted_seconds,
            read_tokens=turn.unread,
            logprobs=logprobs,
            tree=drawn.tree,
            path=tuple(accepted_path.path),
        )
        return self._timed(clock, step)

    def _timed(self, clock: _Clock, step: Step) -> Step:
        return replace(
            step,
            draft_seconds=clock.drafted - clock.started,
            target_seconds=time.perf_counter() - clock.drafted,
            streamed_bytes=self._target.model.streamed_total - clock.streamed,
        )

    def _report(self, turns: Sequence[_Turn], outcomes: Sequence[Step | OffloadError], clock: _Clock) -> None:
        """Tell the policy what the pass cost."""
        steps = [(turn, step) for turn, step in zip(turns, outcomes) if isinstance(step, Step)]
        texts = tuple(
            TextFacts(turn.method, turn.writer.request.sampling, step.accepted + 1, step.drafted + 1, turn.unread - 1)
            for turn, step in steps
            if step.token_ids
        )
        read = sum(turn.reads or 0 for turn, _ in steps)
        if texts or read:
            seconds = max(step.target_seconds for _, step in steps)
            self._policy.passed(PassFacts(texts, clock.drafted - clock.chosen, seconds, read, len(turns)))

    def _drop_draft(self, draft: Draft, writer: Writer) -> None:
        """Continue without a draft that gives NaN at the root; the reply stays exact."""
        with draft.running():
            fault = describe_fault(draft.model, writer.text, writer.place)
        if draft.model is not self._target.model:
            self._sequences.drop(draft.model)
        self._draft, self._policy = None, TreePolicy()
        warnings.warn(
            f"the draft computes values that are not finite ({fault}): the reply goes on without it. Its files may be "
            "damaged; choose another with --draft",
            stacklevel=2,
        )

    def _not_finite(self, writer: Writer) -> ModelFilesError:
        self._sequences.rollback(writer)
        fault = describe_fault(self._target.model, writer.text, writer.place)
        self._sequences.forget(writer.place)
        return ModelFilesError(
            f"the model computes values that are not finite, so no token can be chosen ({fault}).\n"
            "  Its files may be damaged: compare them with where they come from, or download them again.\n"
            "  --dtype float32   where float16 may have been too narrow for this model"
        )


def _all_stop(writers: Sequence[Writer]) -> bool:
    """Whether nobody waits for the pass any more."""
    return all(writer.request.should_stop() for writer in writers)


def _after(first: Growth[object], then: Growth[DraftTree]) -> Growth[DraftTree]:
    yield from first
    return (yield from then)


def _nothing() -> Growth[None]:
    """Drafts nothing."""
    return
    yield


def cut(tokens: list[int], end_token_ids: frozenset[int], most_tokens: int) -> tuple[list[int], str | None]:
    """The tokens up to and including the first end token, at most `most_tokens`; and the finish reason, if any."""
    kept = up_to_end(tokens[:most_tokens], end_token_ids)
    if kept and kept[-1] in end_token_ids:
        return kept, "stop"
    return kept, "length" if len(tokens) >= most_tokens else None
