"""Which passes fetch only the experts they hit: what the cost model says, and what passes so far showed."""

from dataclasses import replace

import pytest

from loaders.checkpoint.spec import LayerSpec
from loaders.sizes import GIB
from scheduler.machine.machine import Machine
from scheduler.plan.expert_choice import ExpertChoice
from scheduler.plan.pass_cost import FETCH_SECONDS, PassCost, expected_routed
from scheduler.plan.placement import Tier
from scheduler.plan.plan import make_plan
from scheduler.plan.simulation import Stage, simulate
from scheduler.plan.table import format_plan
from tests.plan_samples import LLAMA2_70B, gpu, model

LAYERS, EXPERTS = 8, 1_000_000_000
DENSE = 100_000_000
LAYER = LayerSpec("", DENSE + EXPERTS, DENSE + EXPERTS, experts=64, expert_bytes=EXPERTS, expert_disk_bytes=EXPERTS)
MIXTURE = replace(model("mixture", [0], 0, 1024), layers=(LAYER,) * LAYERS, experts_per_token=4)
CPU = Machine(
    "cpu", "test CPU", 64 * GIB, 64 * GIB, 64 * GIB, 64 * GIB, 2, disk_bandwidth=2e9, flops=1e15, memory_bandwidth=1e15
)
GPU = replace(CPU, device="cuda", link_bandwidth=2e10)


def choice(machine=CPU, tier=Tier.DISK, spec=MIXTURE) -> ExpertChoice:
    return ExpertChoice(PassCost(spec, (tier,) * LAYERS, 2, machine))


def test_hits_expected_of_tokens_that_choose_at_random():
    assert expected_routed(64, 4, 1) == pytest.approx(4)
    assert expected_routed(64, 4, 2) == pytest.approx(4 + 4 * 60 / 64)
    assert expected_routed(64, 4, 10_000) == pytest.approx(64)
    assert expected_routed(0, 0, 3) == 0


@pytest.mark.parametrize("machine, tier", [(CPU, Tier.DISK), (GPU, Tier.DISK), (GPU, Tier.HOST)])
def test_few_tokens_fetch_and_many_stream(machine, tier):
    decided = [choice(machine, tier).only_routed(rows, 100) for rows in (1, 8, 200, 2000)]
    assert decided == [True, True, False, False]


def test_fetched_bytes_and_latency_make_the_difference():
    """On paper: dense parts stream at 2 GB/s beside nothing worth mentioning, and 1/16 of the experts follows."""
    cost = PassCost(MIXTURE, (Tier.DISK,) * LAYERS, 2, CPU)
    fetched, whole = cost.seconds_with(4, 1, 1, 0), cost.seconds_with(None, 1, 1, 0)
    assert fetched.total == pytest.approx(LAYERS * ((DENSE + EXPERTS / 16) / 2e9 + FETCH_SECONDS), rel=0.05)
    assert whole.total == pytest.approx(LAYERS * (DENSE + EXPERTS) / 2e9, rel=0.05)
    assert cost.seconds(1, 1, 0).total == fetched.total and cost.seconds(2000, 1, 0).total < whole.total * 1.1


def test_experts_too_small_to_be_worth_asking_for():
    layer = replace(LAYER, nbytes=110_000, disk_bytes=110_000, expert_bytes=100_000, expert_disk_bytes=100_000)
    assert not choice(spec=replace(MIXTURE, layers=(layer,) * LAYERS)).only_routed(1, 0)


def test_without_a_known_speed_half_the_experts_decide():
    unknown = choice(replace(CPU, disk_bandwidth=None))
    assert unknown.only_routed(8, 0) and not unknown.only_routed(16, 0)
    assert expected_routed(64, 4, 8) < 32 < expected_routed(64, 4, 16)


def test_models_without_experts_never_fetch():
    assert not choice(spec=replace(MIXTURE, experts_per_token=0)).only_routed(1, 0)
    assert not choice(spec=replace(MIXTURE, layers=model("plain", [DENSE] * LAYERS, 0, 1).layers)).only_routed(1, 0)
    assert not choice(spec=replace(MIXTURE, experts_per_token=64)).only_routed(1, 0)


def test_tokens_that_are_alike_hit_fewer_as_is_learnt():
    learning = choice()
    before = learning.routed(32)
    for _ in range(60):
        learning.observe(32, [20] * LAYERS)
    assert learning.routed(32) == pytest.approx(20, rel=0.01) and before > 50
    assert learning.routed(1) == pytest.approx(4)
    assert learning.only_routed(200, 0) and not choice().only_routed(200, 0)


@pytest.mark.parametrize("rows, routed", [(1, [4, 4]), (8, []), (8, [64, 64]), (8, [0])])
def test_any_observation_leaves_sensible_numbers(rows, routed):
    learning = choice()
    for _ in range(100):
        learning.observe(rows, routed)
    assert 3.9 < learning.routed(1) <= learning.routed(8) <= 64


def test_on_paper_a_fetch_holds_up_everything_behind_it():
    plain, fetching = (simulate([Stage(0.0, 1.0, 0.1, 0.0, fetch)] * 4, 2, 2) for fetch in (0.0, 0.5))
    assert (
        plain.total == pytest.approx(4.0)
        and fetching.total == pytest.approx(6.0)
        and fetching.link == pytest.approx(6.0)
    )


def test_a_disk_that_is_slower_than_was_measured_is_learnt():
    """A rate out of the page cache makes everything look like computing."""
    learning = choice(replace(CPU, disk_bandwidth=1e14, memory_bandwidth=1e11))
    assert not learning.only_routed(1, 0)
    learning.observe_reading(0, 0.0)
    for _ in range(3):
        learning.observe_reading(1_000_000_000, 1.0)
    assert learning.only_routed(1, 0) and not learning.only_routed(2000, 0)


def test_plans_say_what_one_token_streams():
    plan = make_plan(MIXTURE, None, replace(CPU, device_free=4 * GIB, host_total=8 * GIB, host_available=4 * GIB))
    streamed = sum(tier is not Tier.DEVICE for tier in plan.tiers)
    assert streamed and plan.streamed_bytes == streamed * LAYER.nbytes
    assert plan.token_bytes == streamed * (DENSE + EXPERTS // 16)
    assert plan.seconds_per_pass == pytest.approx(plan.token_bytes / 2e9, rel=0.1)
    assert "one token streams 1." in format_plan(plan)


def test_plans_of_other_models_say_nothing_of_experts():
    plan = make_plan(LLAMA2_70B, None, gpu(20 * GIB))
    assert plan.token_bytes == plan.streamed_bytes and "experts" not in format_plan(plan)
