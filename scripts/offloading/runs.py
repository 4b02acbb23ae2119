"""One run of a program in a process of its own: python runs.py JOB OUTCOME PROGRAM

Programs may live in virtual environments of their own, so what one needs is imported where it runs.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from offloading.job import Job, Outcome
from offloading.page_cache import cached_bytes, drop

if TYPE_CHECKING:
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.options.run_options import Options


def ours(job: Job) -> Outcome:
    """Token by token and without a draft. Weights are read past the page cache, so nothing is dropped between passes,
    and the ring reads on from one pass into the next as it does in every reply."""
    from statistics import median

    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.planning.planning import prepare

    preparation = prepare(our_options(Path(job.model), job.dtype, job.device_memory, job.context_length))
    begin = time.perf_counter()
    with OffloadRuntime(preparation) as runtime:
        loaded = time.perf_counter() - begin
        streamed = [layer for layer, tier in enumerate(runtime.plan.tiers) if tier == "disk"]
        if streamed != job.streamed_layers:  # the exact plan, made while loading, must stream what the others do
            sys.exit(f"layers {streamed} are streamed, {job.streamed_layers} were planned: another --device-memory")
        token_ids, seconds = _our_passes(runtime, job)
        peak = peak_host_bytes()
        with runtime.without_streaming():
            _, computing = _our_passes(runtime, job)
        return Outcome(
            versions=_versions("torch", "transformers", "safetensors"),
            load_seconds=loaded,
            token_ids=token_ids,
            first_seconds=seconds[0],
            pass_seconds=seconds[1:],
            peak_host_bytes=peak,
            compute_seconds=median(computing[1:]),
            read_bytes=runtime.plan.streamed_bytes,
        )


def our_options(model: Path, dtype: str, device_memory: int | str | None, context_length: int) -> "Options":
    """Of our program in the comparison; the planner that says which layers are streamed is asked with the same."""
    from offload_runtime.options.run_options import Options

    how: dict[str, Any] = {"dtype": dtype, "device_memory": device_memory, "context_length": context_length}
    return Options(model=model, device="cpu", tree="none", io="direct", **how)


def _our_passes(runtime: "OffloadRuntime", job: Job) -> tuple[list[int], list[float]]:
    """Tokens, and the seconds from each to the next; all that a step takes counts, not its pass alone."""
    runtime.forget()
    token_ids, times = [], [time.perf_counter()]
    for step in runtime.stream(job.tokens, max_new_tokens=1 + job.passes, temperature=0):
        times.append(time.perf_counter())
        token_ids += step.token_ids
    return token_ids, [stop - start for start, stop in pairwise(times)]


def accelerate(job: Job) -> Outcome:
    """Disk offload by way of transformers.

    Of the documented ways this is the fastest here: safetensors files are used in place. `load_checkpoint_and_dispatch`
    and `disk_offload` write every weight to a file of its own first, and their passes take longer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    layers = AutoConfig.from_pretrained(job.model, local_files_only=True).num_hidden_layers
    places = ["disk" if layer in job.streamed_layers else "cpu" for layer in range(layers)]  # as ours are
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=getattr(torch, job.dtype),
        device_map=device_map("cpu", places),
        offload_folder=job.directory,
        local_files_only=True,
    ).eval()
    loaded = time.perf_counter() - begin
    packages = ("accelerate", "transformers", "torch", "safetensors")
    return _cold_passes(job, Greedy(model, model.config), loaded, packages)


def airllm(job: Job) -> Outcome:
    """On a processor, as its documentation says.

    At its first start it writes a file per layer, which later starts find. It wants a tokenizer beside the weights, so
    it gets a directory of links to the model's files, and where they hold none, one that knows a single word.
    """
    from airllm import AutoModel
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, PreTrainedTokenizerFast

    view = Path(job.directory) / "model"
    if not view.is_dir():
        view.mkdir(parents=True)
        for file in Path(job.model).iterdir():
            (view / file.name).symlink_to(file.resolve())
        if not list(view.glob("tokenizer*")):
            words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
            PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(view)
    begin = time.perf_counter()
    model = AutoModel.from_pretrained(
        str(view), device="cpu", dtype=getattr(torch, job.dtype), layer_shards_saving_path=job.directory
    )
    loaded = time.perf_counter() - begin
    config = AutoConfig.from_pretrained(job.model, local_files_only=True)
    return _cold_passes(job, Greedy(model, config), loaded, ("airllm", "transformers", "torch", "safetensors"))


def _cold_passes(job: Job, next_token: "Greedy", load_seconds: float, packages: Sequence[str]) -> Outcome:
    """The prompt, then token after token, each timed by itself after the files have left the page cache."""
    tokens, seconds, cached = list(job.tokens), list[float](), list[int]()
    with torch.inference_mode():
        for _ in range(1 + job.passes):
            files = [*job.model_files, *job.own_files]
            drop(files)
            cached.append(cached_bytes(files))
            begin = time.perf_counter()
            tokens.append(next_token(tokens if not seconds else tokens[-1:]))
            seconds.append(time.perf_counter() - begin)
    return Outcome(
        versions=_versions(*packages),
        load_seconds=load_seconds,
        token_ids=tokens[len(job.tokens) :],
        first_seconds=seconds[0],
        pass_seconds=seconds[1:],
        cached_bytes=cached,
        written_bytes=sum(file.stat().st_size for file in job.own_files),
        peak_host_bytes=peak_host_bytes(),
    )


class Greedy:
    """Runs a transformers model with a key-value cache: the likeliest token after those given before and now."""

    def __init__(self, model: torch.nn.Module, config: Any, device: str = "cpu"):
        from transformers import DynamicCache

        self._model, self._cache, self._device = model, DynamicCache(config=config), device

    def __call__(self, tokens: Sequence[int]) -> int:
        ids = torch.tensor([list(tokens)], device=self._device)
        output = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(output.logits[0, -1].argmax())


def device_map(outside: str | int, layers: Sequence[str | int]) -> dict[str, str | int]:
    """Where accelerate puts each layer, and everything outside of them."""
    names = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return {
        **dict.fromkeys(names, outside),
        **{f"model.layers.{number}": where for number, where in enumerate(layers)},
    }


def peak_host_bytes() -> int:
    """The most resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


RUNS: dict[str, Callable[[Job], Outcome]] = {"ours": ours, "accelerate": accelerate, "airllm": airllm}

if __name__ == "__main__":
    job_file, outcome_file, program = sys.argv[1:]
    outcome = RUNS[program](Job(**json.loads(Path(job_file).read_text())))
    Path(outcome_file).write_text(json.dumps(asdict(outcome)))
