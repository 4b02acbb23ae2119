"""Plans of a target that drafts for itself with its own codes: what streams, what stays, what they say."""

from pathlib import Path

import pytest
import torch

from loaders.checkpoint.spec import LayerSpec
from offload_runtime.loading.quantize_weights import with_packed_files
from offload_runtime.options.run_options import DEMO_TARGET, Options
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.errors import DoesNotFitError
from scheduler.plan.pass_cost import PassCost
from scheduler.plan.plan import Tier
from scheduler.plan.table import format_plan
from tests.samples.quantized.sixteen_bit_models import SIZES, changed_files, in_16_bits, packed_directory
from tests.samples.tiny_models import checkpoint

DEEP = {**SIZES, "num_hidden_layers": 12}  # else all of them would take less memory than slots and scratch
OPTIONS = {"device": "cpu", "context_length": 96, "link": "packed", "dtype": "bfloat16", "tree_size": 12}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


def planned(model: Path = DEMO_TARGET, draft: str = "self:4", **options: object) -> Preparation:
    """With the least memory that the plan accepts, so that all layers stream."""
    memory = 1
    while True:
        try:
            return prepare(Options(model, draft=draft, device_memory=memory, **{**OPTIONS, **options}))
        except DoesNotFitError as error:
            assert error.needed > memory
            memory = error.needed


def packed(model: Path = DEMO_TARGET, draft: str = "self:4") -> None:
    with_packed_files(planned(model, draft, device="cpu"))


def test_rests_are_planned_before_and_after_packing():
    whole = planned(link="plain").plan.streamed_bytes
    before = planned()
    packed()
    after = planned()
    assert after.plan.streamed_bytes == pytest.approx(before.plan.streamed_bytes, rel=0.05)
    assert max(before.plan.streamed_bytes, after.plan.streamed_bytes) <= 0.45 * whole
    [copy] = [item.device_bytes for item in after.plan.items if "4-bit copy" in item.name]
    assert after.plan.code_bytes <= copy <= 1.01 * after.plan.code_bytes + 20_000
    text = format_plan(after.plan)
    assert (
        "stay, draft, and restore the weights from what streams" in text
        and f"{after.plan.code_bytes / 1e6:.2f} MB" in text
    )
    assert "Of 35 matrices the rest alone crosses the link, the code stays; whole: 10 vectors." in [*forecast(after)]


def test_beside_a_gpu_host_memory_holds_rests_alone():
    packed()
    plan = planned(device="auto", gpu="rtx 4090").plan
    assert set(plan.tiers) == {Tier.HOST} and plan.code_bytes
    [streamed] = [item for item in plan.items if "streamed" in item.name]
    plain = planned(device="auto", gpu="rtx 4090", link="plain").plan
    [streamed_whole] = [item for item in plain.items if "streamed" in item.name]
    assert streamed.host_bytes == plan.streamed_bytes <= 0.45 * streamed_whole.host_bytes


def test_restoring_reads_both_parts():
    """The time to dequantize is that of the whole packed layer."""
    preparation = planned()
    [whole] = {layer.weight_bytes for layer in preparation.target.spec.layers}
    cost = preparation.plan.target_cost(preparation.target.spec)
    layer = LayerSpec("", 700, 700, packed_bytes=600, decoded_bytes=1600, code_bytes=250, code_disk_bytes=250)
    assert layer.without_code.nbytes == 450 and layer.without_code.weight_bytes == layer.weight_bytes
    fast = PassCost(cost.spec, cost.tiers, cost.slots, cost.machine, False, False)
    assert fast._dequantizing_seconds(layer.without_code, 1.0) == fast._dequantizing_seconds(layer, 1.0)
    assert whole > 0


def test_every_tensor_is_accounted_for(tmp_path):
    def changed(name, tensor):
        return tensor.float() if "layers.1.mlp.down_proj" in name else tensor

    source = in_16_bits(checkpoint("llama", **DEEP), tmp_path / "model")
    changed_files(source, changed)
    lines = [*forecast(planned(source))]
    assert (
        "Of 83 matrices the rest alone crosses the link, the code stays; whole: "
        "1 mlp.down_proj.weight (F32), 24 vectors."
    ) in lines
    packed(source, "self:5")
    lines = [*forecast(planned(packed_directory(), link="plain"))]
    assert "Codes stream with their rests: they have 5 bits, the copy 4; --draft self:5 streams rests alone." in lines


def test_codes_of_experts_stay_too(tmp_path):
    """Planned as large as they are; of experts that are fetched singly, the rests alone."""
    source = in_16_bits(checkpoint("mixtral", **DEEP), tmp_path / "model", torch.bfloat16)
    packed(source)
    whole, rests = planned(source, link="plain"), planned(source)
    [line] = [line for line in forecast(rests) if "the rest alone" in line]
    assert line.startswith("Of 192 matrices the rest") and "gate.weight (not packed), 24 vectors" in line
    for layer, before in zip(rests.target.spec.layers, whole.target.spec.layers):
        assert 0.3 < layer.expert_bytes / before.expert_bytes < 0.5
        assert 0.3 < layer.expert_disk_bytes / before.expert_disk_bytes < 0.5
        assert layer.device_bytes < 0.8 * before.nbytes
