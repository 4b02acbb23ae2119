"""Replies of one mode, and how they compare with those of another."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.prompts import FEW
from toolkit.replies import TimedReply, step_seconds

from gpu.bench import Bench, Budget
from gpu.report import Record
from offload_runtime.generation.decode import common_prefix
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.planning.planning import Preparation
from offload_runtime.text.prompt import Prompt

WARM_UP_TOKENS = 16


def prompts(bench: Bench) -> list[Prompt]:
    """Questions that the demonstration pair was trained on the form of."""
    return [[{"role": "user", "content": text}] for text in FEW[: bench.scale.prompts]]


def decode(
    bench: Bench,
    preparation: Preparation,
    questions: Sequence[Prompt],
    most_tokens: int,
    temperature: float,
    budget: Budget,
    warm_up: bool,
) -> tuple[TimedReply, ...]:
    """A reply to each question, the last one cut short where time runs out; at least its first two steps are made."""
    bench.free()
    replies = []
    with OffloadRuntime(preparation) as runtime:
        if warm_up:
            runtime.generate(questions[0], max_new_tokens=WARM_UP_TOKENS, temperature=temperature)
        for number, question in enumerate(questions):
            runtime.forget()
            steps = []
            for step in runtime.stream(question, max_new_tokens=most_tokens, temperature=temperature):
                steps.append(step)
                if budget.seconds < 0 and len(steps) > 1:
                    break
            # how long the prompt is matters to predictions alone, which are not asked for here
            replies.append(TimedReply(number, 0, 0, tuple(steps)))
            if budget.seconds < 0:
                break
    bench.free()
    return tuple(replies)


def decoding(
    section: str,
    what: Mapping[str, Any],
    replies: Sequence[TimedReply],
    reference: tuple[str, Sequence[TimedReply]] | None = None,
    plain: Record | None = None,
) -> Record:
    """The record of some replies.

    what: its "what", "mode", "dtype" and "temperature". reference: what greedy text is compared with, and its replies.
    plain: the same model without trees.
    """
    rest = [step for reply in replies for step in reply.rest]
    steps = [step for reply in replies for step in reply.steps]
    tokens, passes = sum(len(step.token_ids) for step in rest), max(1, len(rest))
    per_token = sum(map(step_seconds, rest)) / max(1, tokens)
    equal, compared = _agreement(replies, reference[1]) if reference else (None, None)
    values = {
        **what,
        "tokens": sum(len(step.token_ids) for step in steps),
        "passes": len(steps),
        "tokens_per_pass": tokens / passes,
        "seconds_per_token": per_token,
        "seconds_to_first_token": replies[0].seconds_to_first_token,
        "draft_seconds": sum(step.draft_seconds for step in rest) / passes,
        "target_seconds": sum(step.target_seconds for step in rest) / passes,
        "streamed_bytes": max((step.streamed_bytes for step in rest), default=0),
        "reference": reference[0] if reference else None,
        "equal_tokens": equal,
        "compared": compared,
        "speedup": plain["seconds_per_token"] / per_token if plain and per_token else None,
    }
    return Record("Decoding", section, values)


def _agreement(replies: Sequence[TimedReply], others: Sequence[TimedReply]) -> tuple[int, int]:
    """(leading tokens that are equal, tokens that could be), summed over the prompts that both answer."""
    pairs = [(one.token_ids, other.token_ids) for one, other in zip(replies, others)]
    return sum(common_prefix(*pair) for pair in pairs), sum(min(map(len, pair)) for pair in pairs)
