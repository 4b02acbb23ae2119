"""Low-bit copies in a plan: layers that stream have one on the device, resident layers draft as they are."""

from dataclasses import replace

import pytest

from loaders.checkpoint.low_bit_copy import copy_of
from loaders.sizes import GIB
from scheduler.plan.plan import Limits, Plan, Tier, make_plan
from tests.plan_samples import LLAMA3_8B, gpu

COPY = copy_of(LLAMA3_8B, 4)
LIMITS = Limits(context_length=1024, tree_size=64)
SPEEDS = {"flops": 1e16, "memory_bandwidth": 1e12}


def plan(gibibytes: int) -> Plan:
    return make_plan(LLAMA3_8B, COPY, gpu(gibibytes * GIB), LIMITS)


def copied(one: Plan) -> int:
    return sum(item.device_bytes for item in one.items if "copy" in item.name)


@pytest.mark.parametrize("gibibytes", [11, 12, 14, 16])
def test_layers_that_stream_have_a_copy_each(gibibytes: int) -> None:
    one = plan(gibibytes)
    streamed = one.tiers.count(Tier.HOST)
    assert 0 < streamed < len(one.tiers) and copied(one) == streamed * COPY.layers[0].nbytes
    assert one.device_bytes <= one.device_budget
    left = one.device_budget - one.device_bytes
    assert left < LLAMA3_8B.layers[0].nbytes - COPY.layers[0].nbytes, "one more layer would not fit"


def test_a_model_that_fits_has_no_copy() -> None:
    one = plan(24)
    assert one.slots == 0 and copied(one) == 0
    assert not any("decoded for use" in item.name for item in one.items)


SMALL, LARGE = COPY.layers[0].nbytes, LLAMA3_8B.layers[0].nbytes


@pytest.mark.parametrize(
    ("rows", "experts", "moved"),
    [(1, 0, 2 * SMALL), (64, 0, 2 * SMALL), (65, 0, SMALL + 2 * LARGE), (1, 2, SMALL + 2 * LARGE)],
)
def test_a_level_runs_copies_and_resident_layers_as_they_are(rows: int, experts: int, moved: int) -> None:
    """The codes of a layer are multiplied by a few rows. Other copies are read, written dequantized, and read for the
    product; a resident layer only the last."""
    one = replace(plan(14), machine=replace(gpu(14 * GIB), layer_seconds=1e-9, **SPEEDS))
    copies, resident = one.tiers.count(Tier.HOST), one.tiers.count(Tier.DEVICE)
    head = LLAMA3_8B.vocab_size * LLAMA3_8B.hidden_size * 2
    expected = (copies * moved + resident * LARGE + head) / 1e12
    cost = one.draft_cost(replace(COPY, experts_per_token=experts), LLAMA3_8B)
    assert cost.seconds(rows, 1, 0).total == pytest.approx(expected, rel=1e-3)
