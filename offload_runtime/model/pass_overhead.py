"""Measures the fixed costs of a pass (Python, masks, kernel launches) and the speed of attention.

Takes a fifth of a second.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from offload_runtime.model.attention import ATTENTION_NAME, attending, tree_attention
from offload_runtime.model.kv_cache import TreeCache
from offload_runtime.model.rows import text_rows
from scheduler.machine.measurements import Figures

FEW_LAYERS, MANY_LAYERS = 1, 9
RUNS, WARM_UP_RUNS = 15, 3
_LEAST_SECONDS = 1e-6  # noise must not give a time of zero or less
_WIDTH = 64  # so small that matrix products take no time beside the rest
# Query tokens, key positions, query heads and key heads: on a GPU those of large models.
_ATTENTION = {"cuda": (512, 4096, 32, 8), "cpu": (64, 1024, 8, 2)}
_HEAD_SIZE = 128


def measure_passes(device: torch.device, dtype: torch.dtype) -> Figures:
    """`attention_flops` of Machine, and its `pass_seconds` and `layer_seconds` from passes of one token through two
    tiny models."""
    few, many = (_median_seconds(_tiny_pass(layers, device, dtype), device) for layers in (FEW_LAYERS, MANY_LAYERS))
    return fixed_costs(few, many) | {"attention_flops": _attention_flops(device, dtype)}


@torch.inference_mode()
def _attention_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s where every query token sees every key: the mask of a tree hides few of them."""
    rows, keys, heads, key_heads = _ATTENTION[device.type]
    query = torch.ones(1, heads, rows, _HEAD_SIZE, dtype=dtype, device=device)
    key = torch.ones(1, key_heads, keys, _HEAD_SIZE, dtype=dtype, device=device)
    mask, module = torch.zeros(1, 1, rows, keys, dtype=dtype, device=device), torch.nn.Module()
    with attending(text_rows(0, rows, device)):
        seconds = _median_seconds(lambda: tree_attention(module, query, key, key, mask), device)
    return 4 * rows * keys * heads * _HEAD_SIZE / max(seconds, _LEAST_SECONDS)


def fixed_costs(few: float, many: float) -> Figures:
    """Seconds per pass and per layer, from the times of passes through few and through many layers."""
    layer = max((many - few) / (MANY_LAYERS - FEW_LAYERS), _LEAST_SECONDS)
    return {"pass_seconds": max(few - FEW_LAYERS * layer, _LEAST_SECONDS), "layer_seconds": layer}


def _tiny_pass(layers: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    config = AutoConfig.for_model(
        "llama",
        **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), _WIDTH),
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2),
        num_hidden_layers=layers,
    )
    with torch.random.fork_rng(devices=[]), device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME).eval()
    cache, rows = TreeCache(config, 8), text_rows(0, 1, device)
    inputs = {"input_ids": torch.zeros_like(rows.row_positions)[None], "position_ids": rows.row_positions[None]}

    @torch.inference_mode()
    def run() -> None:
        cache.truncate(0)
        with attending(rows):
            model(**inputs, use_cache=True, past_key_values=cache, logits_to_keep=1)

    return run


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median over runs that wait for the device, as passes do; warm-up runs allocate memory and choose kernels."""
    seconds = []
    for _ in range(WARM_UP_RUNS + RUNS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[WARM_UP_RUNS:])
