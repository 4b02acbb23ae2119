"""One mode of the benchmark: warm up, time the replies, measure the link around them and the computation by itself."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from toolkit.link import Bandwidths, best, measure_link
from toolkit.replies import TimedReply, percentile, step_seconds

from latency.timeline import Timeline, record_steps
from loaders.checkpoint.spec import ModelSpec
from loaders.progress import StageProgress
from offload_runtime.generation.decode import Step
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.model.pass_overhead import measure_passes
from offload_runtime.planning.planning import Preparation
from offload_runtime.text.prompt import Prompt, encode_prompt
from scheduler.plan.plan import Plan, Tier
from scheduler.streaming.bandwidth import with_speed

WARM_UP_TOKENS = 8
COMPUTE_PASSES = 5  # timed, after one that is not


@dataclass(frozen=True)
class Workload:
    """What every mode runs: each prompt `repeats` times, with one seed per prompt and repeat if there is a `seed`.

    sampling: the other arguments of `OffloadRuntime.stream`.
    """

    prompts: Sequence[Prompt]
    repeats: int
    seed: int | None
    sampling: dict[str, Any]

    def asked(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(prompt number, repeat, arguments of `stream`); all prompts come before the first is repeated."""
        for repeat in range(self.repeats):
            for number, prompt in enumerate(self.prompts):
                seed = None if self.seed is None else self.seed + repeat * len(self.prompts) + number
                yield number, repeat, {"prompt": prompt, "seed": seed, **self.sampling}


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one mode. Bytes, seconds, bytes per second; None where there is nothing to measure.

    links: measured before every repeat and after the last. direct: files are read past the page cache.
    compute_seconds: of a pass with all weights in place. predicted: seconds of `steps` by the cost model.
    """

    mode: str
    plan: Plan
    replies: tuple[TimedReply, ...]
    links: tuple[Bandwidths, ...]
    direct: bool
    compute_seconds: float | None
    predicted: tuple[float, ...] | None
    peak_device_bytes: int
    timeline: Timeline | None = None

    @property
    def steps(self) -> list[Step]:
        """The timed steps: of every reply all but the first."""
        return [step for reply in self.replies for step in reply.rest]

    def figures(self) -> dict[str, Any]:
        """One mode's row of the table, and more for the JSON line."""
        steps, replies = self.steps, self.replies
        passes = [step.target_seconds for step in steps]
        by_reply = [reply.seconds_per_token for reply in replies]
        median = percentile(by_reply)
        return {
            "mode": self.mode,
            "seconds_to_first_token": percentile([reply.seconds_to_first_token for reply in replies]),
            "seconds_per_token_p50": median,
            "seconds_per_token_p95": percentile(by_reply, 95),
            "tokens_per_second_p50": 1 / median if median else None,
            "tokens_per_pass": fmean(len(step.token_ids) for step in steps) if steps else None,
            "pass_seconds_p50": percentile(passes),
            "pass_seconds_p95": percentile(passes, 95),
            "predicted_pass_seconds": fmean(self.predicted) if self.predicted else None,
            "prediction_ratio": fmean(self.predicted) / fmean(passes) if self.predicted else None,
            "draft_seconds": percentile([step.draft_seconds for step in steps]) if self.plan.draft else None,
            **self._link_figures(percentile(passes)),
            "peak_device_bytes": self.peak_device_bytes,
            "link_idle": self.timeline.link_idle if self.timeline else None,
            "device_idle": self.timeline.device_idle if self.timeline else None,
            "past_page_cache": self.direct if Tier.DISK in self.plan.tiers else None,
            "timed_passes": len(steps),
            "plan": self.plan.as_dict(),
        }

    def _link_figures(self, median: float | None) -> dict[str, Any]:
        """How far passes are from the link's bandwidth, and from the larger of streaming alone and computing alone."""
        steps, link = self.steps, best(self.links)
        streamed, took = steps[0].streamed_bytes if steps else 0, sum(map(step_seconds, self.steps))
        link_seconds = link.pass_seconds(self.plan, streamed) if streamed else None
        limit = max(link_seconds, self.compute_seconds) if link_seconds and self.compute_seconds else None
        return {
            "streamed_bytes": streamed or None,
            "bytes_per_second": sum(step.streamed_bytes for step in steps) / took if streamed else None,
            "link_bytes_per_second": asdict(link),
            "link_measurements": [asdict(link) for link in self.links],
            "link_share": link_seconds * len(steps) / took if link_seconds else None,
            "link_seconds": link_seconds,
            "compute_seconds": self.compute_seconds,
            "limit_seconds": limit,
            "limit_ratio": median / limit if median and limit else None,
        }


def measure_mode(
    mode: str,
    preparation: Preparation,
    direct: bool,
    workload: Workload,
    loading: StageProgress,
    on_reply: Callable[[TimedReply], None],
    timeline: bool = False,
) -> Measurement:
    """Load, run the workload and let go of the model again; `on_reply` is called as replies finish.

    timeline: record one for a few more steps of the first prompt.
    """
    gc.collect()  # what the mode before has left
    with OffloadRuntime(preparation, loading) as runtime:
        _, _, first = next(workload.asked())
        runtime.generate(**{**first, "max_new_tokens": min(WARM_UP_TOKENS, first["max_new_tokens"])})
        links, replies = list[Bandwidths](), list[TimedReply]()
        for number, repeat, asked in workload.asked():
            if number == 0:
                links.append(_link(runtime, preparation, direct))
            replies.append(_timed(runtime, number, repeat, asked))
            on_reply(replies[-1])
        peak = runtime.last_reply.stats.peak_device_bytes
        links.append(_link(runtime, preparation, direct))
        return Measurement(
            mode=mode,
            plan=runtime.plan,
            replies=tuple(replies),
            links=tuple(links),
            direct=direct,
            compute_seconds=_compute_seconds(runtime, workload),
            predicted=predict_passes(runtime.plan, preparation.target.spec, replies),
            peak_device_bytes=peak,
            timeline=record_steps(runtime, first) if timeline else None,
        )


def _link(runtime: OffloadRuntime, preparation: Preparation, direct: bool) -> Bandwidths:
    """With every slot full: a ring that still reads ahead would take its share of the bandwidth."""
    with runtime.without_streaming():
        return measure_link(runtime.plan, preparation.target.checkpoint.files, direct)


def _timed(runtime: OffloadRuntime, number: int, repeat: int, asked: dict[str, Any]) -> TimedReply:
    runtime.forget()  # else a repeat would find its prompt in the cache
    prompt_tokens = len(encode_prompt(asked["prompt"], lambda: runtime.tokenizer))
    return TimedReply(tuple(runtime.stream(**asked)), number, prompt_tokens, repeat)


def _compute_seconds(runtime: OffloadRuntime, workload: Workload) -> float | None:
    """The median pass while nothing streams; None where nothing ever does, or every reply ends too early."""
    seconds: list[float] = []
    with runtime.without_streaming():
        for number, repeat, asked in workload.asked():
            if not runtime.plan.slots or len(seconds) >= COMPUTE_PASSES:
                break
            seconds += [step.target_seconds for step in _timed(runtime, number, repeat, asked).rest[1:]]
    return percentile(seconds)


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
        text = reply.prompt_tokens + len(reply.steps[0].token_ids)
        for step in reply.rest:
            nodes = 1 + step.drafted
            predicted.append(cost.seconds(nodes, nodes, text - 1, gap=step.draft_seconds).total)
            text += len(step.token_ids)
    return tuple(predicted)
