"""One mode of the benchmark: warm up, time the replies, measure the link around them and the computation by itself."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.link import Bandwidths, measure_link
from toolkit.memory import host_bytes, peak_host_bytes, reset_peak_host_bytes
from toolkit.replies import TimedReply, percentile

from latency.measurement import Measurement, predict_passes
from latency.timeline import record_steps
from loaders.progress import StageProgress
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.planning.planning import Preparation
from offload_runtime.text.prompt import Prompt, encode_prompt

WARM_UP_TOKENS = 8
COMPUTE_PASSES = 5  # timed, after one that is not


@dataclass(frozen=True)
class Workload:
    """What every mode runs: each prompt `repeats` times, with one seed per prompt and repeat if there is a `seed`."""

    prompts: Sequence[Prompt]
    repeats: int
    warmup: int
    seed: int | None
    max_new_tokens: int
    sampling: dict[str, Any]  # the other arguments of `OffloadRuntime.stream`

    def replies(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(prompt number, repeat, arguments of `stream`); all prompts come before the first is repeated."""
        for repeat in range(self.repeats):
            for number, prompt in enumerate(self.prompts):
                seed = None if self.seed is None else self.seed + repeat * len(self.prompts) + number
                yield number, repeat, self.arguments(prompt, self.max_new_tokens, seed)

    def arguments(self, prompt: Prompt, max_new_tokens: int, seed: int | None) -> dict[str, Any]:
        return {"prompt": prompt, "max_new_tokens": max_new_tokens, "seed": seed, **self.sampling}


def measure_mode(
    mode: str,
    preparation: Preparation,
    workload: Workload,
    loading: StageProgress,
    on_reply: Callable[[TimedReply], None],
    timeline: bool = False,
) -> Measurement:
    """Load, run the workload and let go of the model again; `on_reply` is called as replies finish.

    timeline: record one for a few more steps of the first prompt.
    """
    gc.collect()  # what the mode before has left
    reset_peak_host_bytes()
    before = host_bytes()
    with OffloadRuntime(preparation, loading) as runtime:
        direct = preparation.options.io == "direct"
        files = preparation.target.checkpoint.files
        links, replies = [], []
        _warm_up(runtime, workload)
        for number, repeat, arguments in workload.replies():
            if number == 0:
                links.append(_link(runtime, files, direct))
            replies.append(_timed_reply(runtime, number, repeat, arguments))
            on_reply(replies[-1])
        peak_device, peak_host = runtime.last_reply.stats.peak_device_bytes, peak_host_bytes()
        links.append(_link(runtime, files, direct))
        return Measurement(
            mode=mode,
            plan=runtime.plan,
            replies=tuple(replies),
            links=tuple(links),
            direct=direct,
            compute_seconds=_compute_seconds(runtime, workload),
            predicted=predict_passes(runtime.plan, preparation.target.spec, replies),
            peak_device_bytes=peak_device,
            peak_host_bytes=peak_host,
            host_bytes_before_loading=before,
            timeline=record_steps(runtime, next(workload.replies())[2]) if timeline else None,
        )


def _link(runtime: OffloadRuntime, files: Sequence[Path], direct: bool) -> Bandwidths:
    """With every slot full: a ring that still reads ahead would take its share of the bandwidth."""
    with runtime.without_streaming():
        return measure_link(runtime.plan, files, direct)


def _warm_up(runtime: OffloadRuntime, workload: Workload) -> None:
    for _ in range(workload.warmup):
        runtime.forget()
        arguments = workload.arguments(workload.prompts[0], min(WARM_UP_TOKENS, workload.max_new_tokens), workload.seed)
        for _ in runtime.stream(**arguments):
            pass


def _timed_reply(runtime: OffloadRuntime, number: int, repeat: int, arguments: dict[str, Any]) -> TimedReply:
    runtime.forget()  # else a repeat would find its prompt in the cache
    prompt_tokens = len(encode_prompt(arguments["prompt"], lambda: runtime.tokenizer))
    return TimedReply(number, prompt_tokens, repeat, tuple(runtime.stream(**arguments)))


def _compute_seconds(runtime: OffloadRuntime, workload: Workload) -> float | None:
    """The median pass while nothing streams; None where nothing ever does, or every reply ends too early."""
    if not runtime.plan.slots:
        return None
    seconds: list[float] = []
    with runtime.without_streaming():
        for number, _, arguments in workload.replies():
            reply = _timed_reply(runtime, number, 0, arguments)
            seconds += [step.target_seconds for step in reply.rest[1:]]
            if len(seconds) >= COMPUTE_PASSES:
                break
    return percentile(seconds)
