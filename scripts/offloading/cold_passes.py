"""Passes of a program that reads through the page cache, timed one by one, each after its files have left the cache."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from toolkit.memory import peak_host_bytes

from offloading.job import Job, NextToken, Outcome, written_bytes
from offloading.page_cache import cached_bytes, drop

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def run_passes(job: Job, next_token: NextToken, load_seconds: float, packages: tuple[str, ...]) -> Outcome:
    """The prompt, then token after token. Dropping and looking at the cache lies outside of what is timed."""
    tokens = list(job.tokens)
    seconds: list[float] = []
    cached: list[int] = []
    with torch.inference_mode():
        for _ in range(1 + job.passes):
            drop(job.files)
            cached.append(cached_bytes(job.files))
            begin = time.perf_counter()
            tokens.append(next_token(tokens if not seconds else tokens[-1:]))
            seconds.append(time.perf_counter() - begin)
    return Outcome(
        versions={name: version(name) for name in packages},
        load_seconds=load_seconds,
        token_ids=tokens[len(job.tokens) :],
        first_seconds=seconds[0],
        pass_seconds=seconds[1:],
        cached_bytes=cached,
        written_bytes=written_bytes(job),
        peak_host_bytes=peak_host_bytes(),
    )


class Greedy:
    """Runs a transformers model with a key-value cache: a NextToken."""

    def __init__(self, model: torch.nn.Module, config: "PreTrainedConfig", device: str = "cpu"):
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
