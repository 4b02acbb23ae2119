"""What was measured of one mode, and the figures that follow from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from toolkit.link import Bandwidths, best
from toolkit.replies import TimedReply, percentile, step_seconds

from latency.timeline import Timeline
from loaders.checkpoint.spec import ModelSpec
from offload_runtime.generation.decode import Step
from offload_runtime.model.pass_overhead import measure_passes
from scheduler.plan.plan import Plan, Tier
from scheduler.streaming.bandwidth import with_speed


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one mode. Bytes, seconds, bytes per second; None where there is nothing to measure."""

    mode: str
    plan: Plan
    replies: tuple[TimedReply, ...]
    links: tuple[Bandwidths, ...]  # measured before every repeat and after the last
    direct: bool  # files are read past the page cache
    compute_seconds: float | None  # of a pass with all weights in place
    predicted: tuple[float, ...] | None  # seconds of `steps` by the cost model
    peak_device_bytes: int
    peak_host_bytes: int
    host_bytes_before_loading: int
    timeline: Timeline | None = None  # of a few steps, where it was asked for

    @property
    def steps(self) -> list[Step]:
        """The timed steps: of every reply all but the first."""
        return [step for reply in self.replies for step in reply.rest]

    @property
    def link(self) -> Bandwidths:
        return best(self.links)

    @property
    def seconds_per_token(self) -> float | None:
        """Median over replies."""
        return percentile([reply.seconds_per_token for reply in self.replies])

    def figures(self, outputs: str, speedup: float | None) -> dict[str, Any]:
        """One mode's row of the table, and more for the JSON line; None where there is nothing to say."""
        steps, replies = self.steps, self.replies
        passes = [step.target_seconds for step in steps]
        by_reply = [reply.seconds_per_token for reply in replies]
        return {
            "mode": self.mode,
            "seconds_to_first_token": percentile([reply.seconds_to_first_token for reply in replies]),
            "seconds_per_token_p50": self.seconds_per_token,
            "seconds_per_token_p95": percentile(by_reply, 95),
            "tokens_per_second_p50": 1 / self.seconds_per_token if self.seconds_per_token else None,
            "tokens_per_pass": fmean(len(step.token_ids) for step in steps) if steps else None,
            "pass_seconds_p50": percentile(passes),
            "pass_seconds_p95": percentile(passes, 95),
            "predicted_pass_seconds": fmean(self.predicted) if self.predicted else None,
            "prediction_ratio": fmean(self.predicted) / fmean(passes) if self.predicted else None,
            "draft_seconds": percentile([step.draft_seconds for step in steps]) if self.plan.draft else None,
            **self._link_figures(steps),
            "peak_device_bytes": self.peak_device_bytes,
            "peak_host_bytes": self.peak_host_bytes,
            "host_bytes_before_loading": self.host_bytes_before_loading,
            "link_idle": self.timeline.link_idle if self.timeline else None,
            "device_idle": self.timeline.device_idle if self.timeline else None,
            "past_page_cache": self.direct if Tier.DISK in self.plan.tiers else None,
            "timed_passes": len(steps),
            "speedup": speedup,
            "outputs": outputs,
            "plan": self.plan.as_dict(),
        }

    def _link_figures(self, steps: Sequence[Step]) -> dict[str, Any]:
        """How far passes are from the link's bandwidth, and from the larger of streaming alone and computing alone."""
        streamed = steps[0].streamed_bytes if steps else 0
        took = sum(map(step_seconds, steps))
        link_seconds = self.link.pass_seconds(self.plan, streamed) if streamed else None
        limit = max(link_seconds, self.compute_seconds) if link_seconds and self.compute_seconds else None
        median = percentile([step.target_seconds for step in steps])
        return {
            "streamed_bytes": streamed or None,
            "bytes_per_second": sum(step.streamed_bytes for step in steps) / took if streamed else None,
            "link_bytes_per_second": asdict(self.link),
            "link_measurements": [asdict(link) for link in self.links],
            "link_share": link_seconds * len(steps) / took if link_seconds else None,
            "link_seconds": link_seconds,
            "compute_seconds": self.compute_seconds,
            "limit_seconds": limit,
            "limit_ratio": median / limit if median and limit else None,
        }


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
