"""What launching a resident model's kernels is thought to cost."""

from dataclasses import replace

import pytest

from scheduler.pass_cost import LAYER_SECONDS, REPLAYED_LAYER_SECONDS, resident_cost
from scheduler.sizes import GIB
from tests.plan_samples import LLAMA_68M, cpu, gpu

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


def test_layers_that_share_a_model_with_streamed_ones_are_launched_one_by_one():
    cost = replace(resident_cost(LLAMA_68M, replace(gpu(24 * GIB), **KNOWN)), slots=2)
    assert cost.seconds(1, 1, 100).total == pytest.approx(2 * LAYER_SECONDS, rel=0.01)
