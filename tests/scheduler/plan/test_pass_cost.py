"""The cost model of a pass: what counts on a processor and on a GPU, and how a processor's speed is measured."""

from dataclasses import replace

import pytest
import torch

from loaders.sizes import GIB
from offload_runtime.model.pass_overhead import fixed_costs, measure_passes
from scheduler.machine.machine import Machine
from scheduler.plan.pass_cost import (
    DECODED_VALUE_SECONDS,
    LAYER_SECONDS,
    REPLAYED_LAYER_SECONDS,
    WRITTEN_OUT_SCORE_BYTES,
    PassCost,
    resident_cost,
)
from scheduler.plan.placement import Tier
from scheduler.streaming import bandwidth
from scheduler.streaming.bandwidth import FEW_ROWS, MANY_ROWS, measure_speed
from tests.plan_samples import LLAMA2_70B, LLAMA_68M, cpu, gpu, packed

SPEED = {"flops": 1e11, "memory_bandwidth": 2e10, "product_bandwidth": 5e9}
CPU = Machine("cpu", "test CPU", 64 * GIB, 48 * GIB, 64 * GIB, 48 * GIB, cores=2, disk_bandwidth=2e9, **SPEED)
LAYER = LLAMA2_70B.layers[0].nbytes
HEAD = 2 * LLAMA2_70B.vocab_size * LLAMA2_70B.hidden_size  # bytes in bfloat16, and operations of a row
LAYERS = len(LLAMA2_70B.layers)


def attention(rows: int, context: int) -> float:
    return 4 * rows * (context + rows) * LLAMA2_70B.hidden_size


def cached(context: int) -> float:
    """Bytes of one layer's keys and values."""
    return context * LLAMA2_70B.kv_bytes_per_token / LAYERS


def test_one_row_on_a_processor_reads_the_weights_once():
    expected = LAYERS * (LAYER / 2e10 + attention(1, 0) / 1e11 + LAYER_SECONDS) + HEAD / 2e10
    assert resident_cost(LLAMA2_70B, CPU).seconds(1, 1, 0).total == pytest.approx(expected)


@pytest.mark.parametrize("rows", [2, 64])
def test_more_rows_on_a_processor_lay_weights_out_and_then_multiply(rows):
    operations = rows * LAYER + attention(rows, 100)  # two for each of the layer's two-byte weights
    layer = LAYER / 5e9 + operations / 1e11 + LAYER_SECONDS
    expected = LAYERS * layer + HEAD / 5e9 + rows * HEAD / 1e11
    assert resident_cost(LLAMA2_70B, CPU).seconds(rows, rows, 100).total == pytest.approx(expected)


def test_a_processor_of_which_less_is_known_reads_at_one_speed():
    less = resident_cost(LLAMA2_70B, replace(CPU, product_bandwidth=None)).seconds(2, 2, 0).total
    assert less < resident_cost(LLAMA2_70B, CPU).seconds(2, 2, 0).total


def test_a_processor_decodes_packed_weights_value_by_value():
    layers = tuple(packed(layer, LAYER // 4) for layer in LLAMA2_70B.layers)
    spec = replace(LLAMA2_70B, layers=layers)
    decoding = (LAYER / 4 + LAYER) / 2e10 + LAYER / 2 * DECODED_VALUE_SECONDS
    layer = decoding + LAYER / 2e10 + attention(1, 0) / 1e11 + LAYER_SECONDS
    assert resident_cost(spec, CPU).seconds(1, 1, 0).total == pytest.approx(LAYERS * layer + HEAD / 2e10)
    decoded = resident_cost(spec.with_decoded(LAYERS), CPU).seconds(1, 1, 0).total
    assert decoded == pytest.approx(resident_cost(LLAMA2_70B, CPU).seconds(1, 1, 0).total)


FAST_GPU = replace(gpu(200 * GIB), flops=1e14, attention_flops=1e13, memory_bandwidth=1e12, product_bandwidth=1.0)


@pytest.mark.parametrize("rows, context", [(1, 0), (1, 100_000), (8, 0), (1024, 0), (1024, 4096)])
def test_a_gpu_reads_and_multiplies_side_by_side_and_then_attends_at_its_own_speed(rows: int, context: int):
    attending = max(attention(rows, context) / 1e13, cached(context + rows) / 1e12)
    layer = max(LAYER / 1e12, rows * LAYER / 1e14) + attending
    expected = LAYERS * layer + max(HEAD / 1e12, rows * HEAD / 1e14)
    assert resident_cost(LLAMA2_70B, FAST_GPU).seconds(rows, rows, context).total == pytest.approx(expected)


@pytest.mark.parametrize("rows", [1, 768])
def test_a_gpu_decodes_before_it_multiplies(rows: int):
    """On one stream: while weights are decoded nothing is multiplied."""
    layers = tuple(packed(layer, LAYER // 4) for layer in LLAMA2_70B.layers)
    cost = resident_cost(replace(LLAMA2_70B, layers=layers), FAST_GPU)
    plain = resident_cost(LLAMA2_70B, FAST_GPU).seconds(rows, rows, 0).total
    assert cost.seconds(rows, rows, 0).total == pytest.approx(plain + LAYERS * (LAYER + LAYER // 4) / 1e12)


def test_attention_that_is_written_out_moves_its_scores():
    spec = replace(LLAMA2_70B, model_type="gemma2")
    written_out, fused = (resident_cost(one, FAST_GPU).seconds(512, 1, 4096).total for one in (spec, LLAMA2_70B))
    scores = LAYERS * spec.num_heads * 512 * (4096 + 512)
    assert written_out - fused == pytest.approx(scores * WRITTEN_OUT_SCORE_BYTES / 1e12)


def test_a_pass_from_disk_takes_the_disk_its_time():
    cost = PassCost(LLAMA2_70B, (Tier.DISK,) * LAYERS, 2, CPU)
    reading = sum(layer.disk_bytes for layer in LLAMA2_70B.layers) / 2e9
    assert cost.seconds(1, 1, 0).total == pytest.approx(reading, rel=0.03)


def test_two_sizes_tell_weights_and_rows_apart(monkeypatch):
    seconds = {1: 0.004, FEW_ROWS: 0.02 + FEW_ROWS * 0.001, MANY_ROWS: 0.02 + MANY_ROWS * 0.001}
    monkeypatch.setattr(bandwidth, "_product_seconds", lambda device, dtype, rows: seconds[rows])
    figures = measure_speed(torch.device("cpu"), torch.float32)
    nbytes = bandwidth.SWEEP_BYTES["cpu"]
    assert figures["memory_bandwidth"] == pytest.approx(nbytes / 0.004)
    assert figures["product_bandwidth"] == pytest.approx(nbytes / 0.02)
    assert figures["flops"] == pytest.approx(2 * nbytes / 4 / 0.001)


def test_noise_makes_neither_rows_nor_weights_free(monkeypatch):
    monkeypatch.setattr(bandwidth, "_product_seconds", lambda device, dtype, rows: 0.01)
    figures = measure_speed(torch.device("cpu"), torch.float32)
    assert all(0 < value < 1e15 for value in figures.values())


@pytest.mark.parametrize(("seconds", "most"), [(0.6, 1), (0.01, 100)])
def test_slow_products_are_not_repeated(seconds: float, most: int, monkeypatch):
    """By a clock that only the work moves."""
    now, runs = [0.0], [0]

    def work() -> None:
        now[0] += seconds
        runs[0] += 1

    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: now[0])
    assert bandwidth._seconds(torch.device("cpu"), work) == pytest.approx(seconds)
    assert runs[0] == 1 if most == 1 else 1 < runs[0] <= most


KNOWN = {"flops": 1e14, "memory_bandwidth": 1e15}  # so fast that launching is all that counts


@pytest.mark.parametrize(
    "machine, rows, seconds",
    [
        (gpu(24 * GIB), 1, REPLAYED_LAYER_SECONDS),
        (gpu(24 * GIB), 128, REPLAYED_LAYER_SECONDS),
        (gpu(24 * GIB), 129, LAYER_SECONDS),
        (cpu(24 * GIB), 1, LAYER_SECONDS),
    ],
)
def test_layers_in_graphs_are_launched_with_them(machine, rows, seconds):
    cost = resident_cost(LLAMA_68M, replace(machine, **KNOWN))
    assert cost.seconds(rows, 1, 100).total == pytest.approx(2 * seconds, rel=0.01)


@pytest.mark.parametrize("machine, layer", [(cpu(24 * GIB), 4e-3), (gpu(24 * GIB), REPLAYED_LAYER_SECONDS)])
def test_passes_and_layers_take_what_was_measured_of_tiny_ones(machine, layer):
    known = replace(machine, **KNOWN, pass_seconds=3e-2, layer_seconds=4e-3)
    assert resident_cost(LLAMA_68M, known).seconds(1, 1, 100).total == pytest.approx(3e-2 + 2 * layer, rel=0.01)


def test_fixed_costs_of_two_models_are_told_apart():
    figures = fixed_costs(few=5e-3 + 1e-3, many=5e-3 + 9e-3)
    assert figures == pytest.approx({"pass_seconds": 5e-3, "layer_seconds": 1e-3})
    assert all(seconds > 0 for seconds in fixed_costs(few=2e-3, many=1e-3).values()), "noise makes nothing free"


def test_passes_can_be_measured():
    state = torch.get_rng_state()
    figures = measure_passes(torch.device("cpu"), torch.float32)
    assert figures.keys() == {"pass_seconds", "layer_seconds", "attention_flops"}
    assert 1e6 < figures.pop("attention_flops") < 1e14 and all(0 < value < 10 for value in figures.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_that_share_a_model_with_streamed_ones_are_launched_one_by_one():
    cost = replace(resident_cost(LLAMA_68M, replace(gpu(24 * GIB), **KNOWN)), slots=2)
    assert cost.seconds(1, 1, 100).total == pytest.approx(2 * LAYER_SECONDS, rel=0.01)
