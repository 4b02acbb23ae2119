"""Growing and verifying a tree count in predictions from the start."""

from dataclasses import replace

import pytest

from offload_runtime.planning.prediction import predict
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, make_plan
from scheduler.plan.tree_cost import growth_seconds, verification_seconds
from tests.plan_samples import TINY, TINY_DRAFT, cpu, gpu

GPU = replace(gpu(64 << 30), memory_bandwidth=1e12, flops=1e14, pass_seconds=1e-3, layer_seconds=1e-4)
VOCABULARY = 128_256


@pytest.mark.parametrize("seconds", [growth_seconds, verification_seconds])
def test_large_vocabularies_are_bound_by_memory_and_small_ones_by_launches(seconds):
    assert seconds(768, 2 * VOCABULARY, GPU) == pytest.approx(2 * seconds(768, VOCABULARY, GPU))
    assert seconds(64, 64, GPU) == seconds(64, 96, GPU) > 50e-6


@pytest.mark.parametrize("machine", [cpu(64 << 30), gpu(64 << 30)], ids=["processor", "unknown speed"])
def test_what_is_not_known_costs_nothing(machine: Machine):
    assert growth_seconds(64, VOCABULARY, machine) == verification_seconds(64, VOCABULARY, machine) == 0


def test_no_tree_is_not_verified():
    assert verification_seconds(1, VOCABULARY, GPU) == 0


def test_predictions_count_both(monkeypatch):
    deep = replace(TINY, layers=TINY.layers * 50)  # whose passes are worth a tree
    plan = make_plan(deep, TINY_DRAFT, GPU, Limits(context_length=64, tree_size=8))
    usual = predict(plan, deep, TINY_DRAFT, [0.6, 0.2, 0.1])
    assert usual.tree.depth and usual.verification_seconds > 0
    total = usual.tree_pass.total + usual.draft_seconds + usual.verification_seconds
    assert usual.seconds_per_token == pytest.approx(total / usual.tree.tokens_per_pass)
    for part in ("growth_seconds", "verification_seconds"):
        with monkeypatch.context() as patch:
            patch.setattr(f"offload_runtime.planning.prediction.{part}", lambda *_: 0.0)
            assert predict(plan, deep, TINY_DRAFT, [0.6, 0.2, 0.1]).seconds_per_token < usual.seconds_per_token
