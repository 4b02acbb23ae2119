"""Our streamed decoding, token by token and without a draft: python run_ours.py JOB OUTCOME

Weights are read past the page cache, so there is nothing to drop between passes, and the ring reads on from one pass
into the next as it does in every reply.
"""

import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.memory import peak_host_bytes
from toolkit.replies import percentile

from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare
from offloading.job import Job, Outcome
from scheduler.plan.plan import Plan


def options(model: Path, dtype: str, device_memory: int | str | None, context_length: int) -> Options:
    """Of our program in the comparison; the planner that says which layers are streamed is asked with the same."""
    return Options(
        model=model,
        device="cpu",
        dtype=dtype,
        device_memory=device_memory,
        context_length=context_length,
        tree="none",
        io="direct",
    )


def main(job_file: str, outcome_file: str) -> None:
    job = Job.read(job_file)
    preparation = prepare(options(Path(job.model), job.dtype, job.device_memory, job.context_length))
    begin = time.perf_counter()
    with OffloadRuntime(preparation) as runtime:
        loaded = time.perf_counter() - begin
        _insist_on(job.streamed_layers, runtime.plan)
        token_ids, seconds = _timed(runtime, job)
        peak = peak_host_bytes()
        with runtime.without_streaming():
            _, computing = _timed(runtime, job)
        Outcome(
            versions={name: version(name) for name in ("torch", "transformers", "safetensors")},
            load_seconds=loaded,
            token_ids=token_ids,
            first_seconds=seconds[0],
            pass_seconds=seconds[1:],
            peak_host_bytes=peak,
            compute_seconds=percentile(computing[1:]),
            read_bytes=runtime.plan.streamed_bytes,
        ).write(outcome_file)


def _timed(runtime: OffloadRuntime, job: Job) -> tuple[list[int], list[float]]:
    """Tokens, and the seconds from each to the next; all that a step takes counts, not its pass alone."""
    runtime.forget()
    token_ids, times = [], [time.perf_counter()]
    for step in runtime.stream(job.tokens, max_new_tokens=1 + job.passes, temperature=0):
        times.append(time.perf_counter())
        token_ids += step.token_ids
    return token_ids, [stop - start for start, stop in pairwise(times)]


def _insist_on(layers: list[int], plan: Plan) -> None:
    """The exact plan, made while loading, must stream what the others were told to."""
    streamed = [layer for layer, tier in enumerate(plan.tiers) if tier == "disk"]
    if streamed != layers:
        sys.exit(f"error: layers {streamed} are streamed, {layers} were planned: try another --device-memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
