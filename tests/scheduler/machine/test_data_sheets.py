"""Plans for cards that are not here: data sheets by name, and what Llama-3 70B comes to on them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.checkpoint.random_weights import SHAPES
from loaders.checkpoint.read_spec import read_spec
from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import GIB
from offload_runtime.chat import main
from offload_runtime.planning.best_plan import best_plan
from offload_runtime.planning.prediction import predict
from scheduler.machine.data_sheets import GPUS, known_gpu, planned_machine, recognised, with_data_sheet
from scheduler.machine.machine import Machine
from scheduler.machine.pcie import PCIe
from scheduler.plan.plan import Limits, Tier, make_plan
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE
from tests.loaders.hostile.header_checkpoints import header_checkpoint
from tests.plan_samples import LLAMA3_8B, LLAMA3_8B_INT4, LLAMA3_70B, cpu, gpu

SEQUOIA_SECONDS_PER_TOKEN = 0.60  # Llama-3 70B on an L40, as its authors publish it


@pytest.mark.parametrize("name", ["rtx-4090", "RTX 4090", " rtx_4090 ", "Rtx-4090", "rtx4090"])
def test_names_are_read_as_people_write_them(name: str) -> None:
    assert known_gpu(name).name == "RTX 4090"


def test_unknown_names_are_answered_with_those_near_or_all() -> None:
    with pytest.raises(ValueError, match="perhaps rtx-4090"):
        known_gpu("rtx-4091")
    with pytest.raises(ValueError, match=r"l40.*rtx-5090"):
        known_gpu("voodoo")


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti Super"),
        ("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce GT 1030", None),
    ],
)
def test_drivers_names(driver_name: str, name: str | None) -> None:
    found = recognised(driver_name)
    assert (found.name if found else None) == name


def test_measurements_are_not_overwritten_by_data_sheets() -> None:
    machine = with_data_sheet(replace(gpu(24 * GIB), flops=1e12), known_gpu("rtx-4090"))
    assert machine.flops == 1e12 and machine.memory_bandwidth == pytest.approx(0.85 * 1008e9)
    assert machine.estimated == ("attention_flops", "memory_bandwidth")


@pytest.mark.parametrize(("slot", "expected"), [(PCIe(4, 16), 25.2e9), (PCIe(5, 16), 50.4e9), (PCIe(4, 8), 12.6e9)])
def test_slots(slot: PCIe, expected: float) -> None:
    assert slot.bandwidth == pytest.approx(expected, rel=0.01)


def test_a_slot_of_the_future_is_not_guessed() -> None:
    assert PCIe(9, 16).bandwidth is None


@pytest.mark.parametrize("card", GPUS, ids=lambda card: card.key)
def test_every_card_has_a_plan_that_fills_it(card) -> None:
    """No memory is left that another resident layer could use."""
    machine = planned_machine(card.key, cpu(16 * GIB, disk=2e9), 256 * GIB)
    plan = make_plan(LLAMA3_70B, None, machine)
    left = plan.device_budget - plan.device_bytes
    assert left >= 0 and (not plan.slots or left < max(layer.nbytes for layer in LLAMA3_70B.layers))
    assert plan.device_budget <= card.mebibytes * 2**20 and plan.host_budget <= 256 * GIB
    assert Tier.DISK not in plan.tiers and bool(plan.slots) == (plan.seconds_per_pass is not None)


def l40(link: float = 25e9) -> Machine:
    return replace(planned_machine("l40", cpu(16 * GIB), 256 * GIB), link_bandwidth=link)


@pytest.mark.parametrize("draft", [LLAMA3_8B, LLAMA3_8B_INT4], ids=["bf16 draft", "int4 draft"])
def test_llama_3_70b_on_an_l40_is_predicted_below_what_sequoia_published(draft: ModelSpec) -> None:
    """With the published acceptance as it stands: no credit for verification by traversal or adaptive trees."""
    plan = best_plan(LLAMA3_70B, draft, l40(), Limits(), DEFAULT_ACCEPTANCE)
    prediction = predict(plan, LLAMA3_70B, draft, DEFAULT_ACCEPTANCE)
    assert prediction.seconds_per_token < SEQUOIA_SECONDS_PER_TOKEN
    assert plan.tree_size > 512 and prediction.tree.tokens_per_pass < 10
    assert prediction.tree_pass.link == pytest.approx(plan.streamed_bytes / 25e9)
    total = prediction.tree_pass.total + prediction.draft_seconds + prediction.verification_seconds
    assert prediction.seconds_per_token == pytest.approx(total / prediction.tree.tokens_per_pass)


def test_the_tree_is_chosen_where_it_can_be_predicted_and_the_user_leaves_it_open() -> None:
    def size(machine: Machine, limits: Limits | None = None) -> int:
        return best_plan(LLAMA3_70B, LLAMA3_8B_INT4, machine, limits or Limits(), DEFAULT_ACCEPTANCE).tree_size

    assert size(l40(), Limits(tree_size=96)) == 96
    assert size(replace(l40(), flops=None)) == make_plan(LLAMA3_70B, LLAMA3_8B_INT4, l40()).tree_size == 512
    assert size(replace(l40(), flops=1e12)) < size(replace(l40(), flops=10e12)) < size(l40())


def test_the_command_line_plans_for_a_card_from_headers_alone(tmp_path: Path, capsys) -> None:
    target = header_checkpoint(tmp_path / "Llama-3-70B", SHAPES["llama-3-70b"])
    draft = header_checkpoint(tmp_path / "Llama-3-8B", SHAPES["llama-3-8b"])
    pair = ["-m", str(target), "-d", str(draft), "--plan", "--gpu", "l40", "--host-memory", "256GiB"]
    assert main(pair) == 0
    shown = capsys.readouterr().out
    assert "on L40: 48.3 GB, 275 GB of RAM beside it, PCIe 4.0 x16 about 25.2 GB/s" in shown
    for part in ("tokens per pass of a static tree", "s per pass: link", "of drafting in"):
        assert part in shown
    assert "published for Llama-3" in shown and "Estimated from data sheets" in shown
    assert main([*pair, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["device_name"] == "L40" and plan["tree_size"] > 512 and set(plan["tiers"]) == {"device", "host"}


def test_a_card_with_too_little_memory_beside_it_streams_from_disk_and_says_what_would_help(tmp_path, capsys) -> None:
    target = header_checkpoint(tmp_path / "Llama-3-70B", SHAPES["llama-3-70b"])
    assert main(["-m", str(target), "--plan", "--gpu", "rtx-4090", "--host-memory", "64GiB"]) == 0
    assert re.search(r"--quantize int4 \(42\.\d GB of weights\) would fit into memory instead", capsys.readouterr().out)


def test_planning_for_a_card_is_refused_where_it_cannot_be_meant(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--gpu", "l40"])
    assert stopped.value.code == 2 and "--plan" in capsys.readouterr().err
    assert main(["--plan", "--gpu", "voodoo"]) == 2
    assert "the known ones are" in capsys.readouterr().err


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
UMBRELLA_TOKENS_PER_SECOND = 7.2  # Llama-3.3 70B in AWQ on an RTX 4090 at temperature 0.6, as its authors publish it


def test_70b_in_awq_on_a_24_gb_card_is_predicted_above_what_umbrella_published(tmp_path: Path, capsys) -> None:
    target = header_checkpoint(tmp_path / "Llama-3.3-70B-AWQ", SHAPES["llama-3-70b"], AWQ)
    draft = header_checkpoint(tmp_path / "Llama-3.2-1B", SHAPES["llama-3.2-1b"])
    assert main(["-m", str(target), "-d", str(draft), "--plan", "--gpu", "rtx-4090", "--host-memory", "64GiB"]) == 0
    shown = capsys.readouterr().out
    assert "AWQ 4-bit" in shown and "weights decoded for use" in shown and "computing" in shown
    found = re.search(r"([\d.]+) tokens/s, predicted from", shown)
    assert found and float(found[1]) > UMBRELLA_TOKENS_PER_SECOND, shown
    assert re.search(r"Prompts: up to (512|1024|2048) new tokens", shown), "a prompt shares the pass of the first tree"


def test_decoding_products_and_attention_follow_one_another(tmp_path: Path) -> None:
    """70B in AWQ, 768 nodes, an RTX 4090: 0.2 s of decoding, 0.9 s of products, 0.2 s of attention."""
    target = header_checkpoint(tmp_path / "Llama-3.3-70B-AWQ", SHAPES["llama-3-70b"], AWQ)
    machine = planned_machine("rtx-4090", cpu(16 * GIB), 64 * GIB)
    spec = read_spec(target)
    plan = make_plan(spec, None, machine, Limits(context_length=4096))
    one_pass = plan.target_cost(spec).seconds(768, 768, 2048)
    values = sum(layer.decoded_bytes for layer in spec.layers) / 2
    decoding = sum(layer.packed_bytes + layer.decoded_bytes for layer in spec.layers) / machine.memory_bandwidth
    products = 2 * 768 * values / machine.flops
    attention = 80 * 4 * 768 * (2048 + 768) * 8192 / machine.attention_flops
    assert one_pass.compute == pytest.approx(decoding + products + attention, rel=0.02)
    assert one_pass.total >= one_pass.compute > 1.2 > one_pass.link


def test_4_bits_made_of_16_are_planned_without_packing_them(tmp_path: Path, capsys) -> None:
    target = header_checkpoint(tmp_path / "Llama-3-70B", SHAPES["llama-3-70b"])
    pair = ["-m", str(target), "-d", "none", "--quantize", "int4", "--quantized-directory", str(tmp_path / "packed")]
    assert main([*pair, "--plan", "--gpu", "rtx-4090", "--host-memory", "64GiB"]) == 0
    assert "compressed-tensors int4" in capsys.readouterr().out and not (tmp_path / "packed").exists()
