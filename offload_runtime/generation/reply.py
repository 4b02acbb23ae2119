"""A reply and what it cost, accumulated from the steps of the decode loop."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from offload_runtime.generation.decode import Step
from offload_runtime.text.reply_text import ReplyText


@dataclass
class ReplyStats:
    """Sums over the steps of one reply. Seconds are wall time inside the runtime, not in its consumer.

    passes: steps that produced tokens, each one pass of the target over a tree (the first may take several over a long
    prompt). link_bytes_per_second: streamed bytes over all seconds, so a link that idles shows. methods: passes by the
    kind of tree. predicted_passes: those for which the choice of the tree made a prediction; predicted_tokens and
    predicted_seconds are its sums over them, measured_tokens and measured_seconds what came of them.
    prompt_tokens: of the prompt; prompt_tokens_read: those that the cache did not hold from the text before, which the
    first step reads: in prompt_seconds, the target's time for it, with the first tree that it checks along with them.
    first_tokens: of the reply, that the first step brought.
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
        if not step.token_ids:
            return
        if self.seconds_to_first_token is None:
            self.seconds_to_first_token = self.seconds
            self.prompt_tokens_read, self.prompt_seconds = step.read_tokens, step.target_seconds
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
        """Tokens of the prompt read in a second; None before they are."""
        return self.prompt_tokens_read / self.prompt_seconds if self.prompt_seconds else None

    @property
    def reply_tokens_per_second(self) -> float | None:
        """Tokens written in a second after those of the first step; None where there are none."""
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
        """Sums and derived figures, as JSON can hold them."""
        derived = (
            *("seconds", "tokens_per_pass", "tokens_per_second", "seconds_per_token", "link_bytes_per_second"),
            *("prompt_tokens_per_second", "reply_tokens_per_second"),
        )
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass
class Reply:
    """What a generation produced so far. finish_reason: "stop", "length" or "interrupted"; None while it runs.

    text: the answer. reasoning: what was thought before it, by models that mark it.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    seed: int = 0
    stats: ReplyStats = field(default_factory=ReplyStats)

    def add(self, step: Step) -> None:
        self.token_ids += step.token_ids
        self.text += step.text
        self.reasoning += step.reasoning
        self.finish_reason = step.finish_reason
        self.stats.add(step)


def with_text(step: Step, text: ReplyText) -> Step:
    """The step with the text it completes; cut behind the token that completes a stop string.

    A token that ends the reply is none of its text, special or not.
    """
    thoughts, answers = [], []
    for count, token in enumerate(step.token_ids, start=1):
        thought, answer = text.push(token, ends=step.finish_reason == "stop" and count == len(step.token_ids))
        thoughts.append(thought)
        answers.append(answer)
        if text.is_stopped:
            step = replace(step, token_ids=step.token_ids[:count], finish_reason="stop")
            break
    if step.finish_reason and not text.is_stopped:
        thought, answer = text.finish()
        thoughts.append(thought)
        answers.append(answer)
    return replace(step, text="".join(answers), reasoning="".join(thoughts))
