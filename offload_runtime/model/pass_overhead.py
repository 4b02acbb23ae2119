"""What a pass takes however small its model is: Python, masks, launching kernels; and how fast attention is.

Measured in a fifth of a second.
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
_LEAST_SECONDS = 1e-6  # noise must not make passes free
_WIDTH = 64  # whose products take no time beside the rest
# Rows of a tree, keys, heads and heads of keys: on a GPU as large models have them.
_ATTENTION = {"cuda": (512, 4096, 32, 8), "cpu": (64, 1024, 8, 2)}
_HEAD_SIZE = 128


def measure_passes(device: torch.device, dtype: torch.dtype) -> Figures:
    """`pass_seconds` and `layer_seconds` of Machine, from passes of one row through two tiny models, and
    `attention_flops`."""
    few, many = (_median_seconds(_tiny_pass(layers, device, dtype), device) for layers in (FEW_LAYERS, MANY_LAYERS))
    return fixed_costs(few, many) | {"attention_flops": _attention_flops(device, dtype)}


@torch.inference_mode()
def _attention_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of a tree's rows that all see all keys: masks hide few of them."""
    rows, keys, heads, key_heads = _ATTENTION[device.type]
    query = torch.ones(1, heads, rows, _HEAD_SIZE, dtype=dtype, device=device)
    key = torch.ones(1, key_heads, keys, _HEAD_SIZE, dtype=dtype, device=device)
    mask, module = torch.zeros(1, 1, rows, keys, dtype=dtype, device=device), torch.nn.Module()
    with attending(text_rows(0, rows, device)):
        seconds = _median_seconds(lambda: tree_attention(module, query, key, key, mask), device)
    return 4 * rows * keys * heads * _HEAD_SIZE / max(seconds, _LEAST_SECONDS)


def fixed_costs(few: float, many: float) -> Figures:
    """The seconds of a pass without layers, and of a layer, from those of passes through few and many layers."""
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
    """Of runs that each wait for the device, as passes do, after some that pay for memory and for choosing kernels."""
    seconds = []
    for _ in range(WARM_UP_RUNS + RUNS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[WARM_UP_RUNS:])
