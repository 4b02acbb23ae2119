"""A reply and what it cost, accumulated from the steps of the decode loop."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from offload_runtime.generation.decode import Step
from offload_runtime.text.reply_text import ReplyText
from offload_runtime.text.tools.tool_call import ToolCall
from sequoia_tree.verification.logprobs import TokenLogprobs


@dataclass
class ReplyStats:
    """Sums over the steps of one reply. Seconds are wall time inside the runtime, not in its consumer.

    passes: steps that produced tokens, each one pass of the target over a tree (the first may take several passes over
    a long prompt). link_bytes_per_second: streamed bytes over all seconds, so it shows when the link idles. methods:
    passes by kind of tree. predicted_passes: passes with a prediction; predicted_tokens and predicted_seconds are the
    sums of these predictions, measured_tokens and measured_seconds those of the results.
    prompt_tokens: tokens in the prompt. prompt_tokens_read: those not in the cache yet, which the first step reads in
    prompt_seconds, the target's time for it; this includes the first tree.
    first_tokens: tokens of the reply from the first step.
    """

    prompt_tokens: int = 0
    prompt_tokens_read: int = 0
    prompt_seconds: float = 0.0

    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    seconds_to_first_token: float | None = None
    streamed_bytes: int = 0
    peak_device_bytes: int = 0
    methods: dict[str, int] = field(default_factory=dict)
    predicted_passes: int = 0
    predicted_tokens: float = 0.0
    predicted_seconds: float = 0.0
    measured_tokens: int = 0
    measured_seconds: float = 0.0
    first_tokens: int = 0

    def add(self, step: Step) -> None:
        self.draft_seconds += step.draft_seconds
        self.target_seconds += step.target_seconds
        self.streamed_bytes += step.streamed_bytes
        if self.seconds_to_first_token is None and step.finish_reason != "interrupted":
            self.prompt_tokens_read += step.read_tokens
            self.prompt_seconds += step.target_seconds
        if not step.token_ids:
            return
        if self.seconds_to_first_token is None:
            self.seconds_to_first_token = self.seconds
            self.first_tokens = len(step.token_ids)
        self.passes += 1
        self.tokens += len(step.token_ids)
        self.drafted += step.drafted
        self.accepted += step.accepted
        self.methods[step.method] = self.methods.get(step.method, 0) + 1
        if step.predicted_tokens is not None and step.predicted_seconds is not None:
            self.predicted_passes += 1
            self.predicted_tokens += step.predicted_tokens
            self.predicted_seconds += step.predicted_seconds
            self.measured_tokens += step.accepted + 1
            self.measured_seconds += step.draft_seconds + step.target_seconds

    @property
    def seconds(self) -> float:
        return self.draft_seconds + self.target_seconds

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """Tokens of the prompt read per second; None before it is read."""
        return self.prompt_tokens_read / self.prompt_seconds if self.prompt_seconds else None

    @property
    def reply_tokens_per_second(self) -> float | None:
        """Tokens per second after the first step; None if there are none."""
        if self.seconds_to_first_token is None or self.tokens == self.first_tokens:
            return None
        return (self.tokens - self.first_tokens) / max(self.seconds - self.seconds_to_first_token, 1e-9)

    @property
    def seconds_per_token(self) -> float | None:
        return self.seconds / self.tokens if self.tokens else None

    @property
    def link_bytes_per_second(self) -> float:
        return self.streamed_bytes / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Sums and derived figures, as JSON values."""
        derived = (
            *("seconds", "tokens_per_pass", "tokens_per_second", "seconds_per_token", "link_bytes_per_second"),
            *("prompt_tokens_per_second", "reply_tokens_per_second"),
        )
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass
class Reply:
    """The result of a generation so far. finish_reason: "stop", "length" or "interrupted"; None while it runs.

    text: the answer. reasoning: the thinking before it, for models that mark it. tool_calls: the model's calls of the
    tools it was offered. stop_string: the one that has ended the answer, if one has. logprobs: one entry per token, if
    they were asked for.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    seed: int = 0
    stats: ReplyStats = field(default_factory=ReplyStats)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    stop_string: str | None = None

    def add(self, step: Step) -> None:
        self.token_ids += step.token_ids
        self.logprobs += step.logprobs
        self.text += step.text
        self.reasoning += step.reasoning
        self.tool_calls += step.tool_calls
        self.stop_string = step.stop_string
        self.finish_reason = step.finish_reason
        self.stats.add(step)


def with_text(step: Step, text: ReplyText) -> Step:
    """The step with its text and calls of tools, cut after the token that completes a stop string.

    An end token is not part of the text, whether it is a special token or not.
    """
    thoughts, answers, known = [], [], len(text.calls)
    for count, token in enumerate(step.token_ids, start=1):
        thought, answer = text.push(token, ends=step.finish_reason == "stop" and count == len(step.token_ids))
        thoughts.append(thought)
        answers.append(answer)
        if text.is_stopped:
            step = replace(step, token_ids=step.token_ids[:count], logprobs=step.logprobs[:count], finish_reason="stop")
            break
    if step.finish_reason and not text.is_stopped:
        thought, answer = text.finish()
        thoughts.append(thought)
        answers[-1:] = ["".join([*answers[-1:], answer])]
    step = replace(step, tool_calls=tuple(text.calls[known:]), stop_string=text.stop_string)
    return replace(step, text="".join(answers), reasoning="".join(thoughts), pieces=tuple(answers))
