"""What the cost model says of the passes that were run, to stand beside what they took."""

from collections.abc import Sequence
from dataclasses import replace

from latency.records import TimedReply
from loaders.checkpoint.spec import ModelSpec
from offload_runtime.model.pass_overhead import measure_passes
from scheduler.plan.plan import Plan
from scheduler.streaming.bandwidth import with_speed


def predict_passes(plan: Plan, target: ModelSpec, replies: Sequence[TimedReply]) -> tuple[float, ...] | None:
    """Seconds of every timed pass of the replies, in their order; None where a bandwidth that counts is unknown.

    A pass runs the tree's nodes behind the text so far, its last token the root, and begins once the draft is done.
    """
    cost = plan.target_cost(target)
    if not plan.machine.flops:
        cost = replace(cost, machine=with_speed(plan.machine, plan.dtype, measure_passes))
    if not (cost.is_known and cost.knows_computing):
        return None

    predicted = []
    for reply in replies:
        text = reply.prompt_tokens
        for number, step in enumerate(reply.steps):
            if number:
                nodes = 1 + step.drafted
                predicted.append(cost.seconds(nodes, nodes, text - 1, gap=step.draft_seconds).total)
            text += len(step.token_ids)
    return tuple(predicted)
