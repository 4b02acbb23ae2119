"""What a GPU's compute capability rules out: builds of PyTorch without kernels for it, and bfloat16."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loaders.checkpoint.random_weights import SHAPES
from loaders.errors import UnsupportedModelError
from loaders.io.byte_ranges import ByteRange
from loaders.io.reader import _copy
from loaders.sizes import GIB
from offload_runtime.chat import main
from offload_runtime.errors import MachineError
from offload_runtime.loading import models as loading
from offload_runtime.planning import planning
from offload_runtime.planning.compute_dtype import OVERFLOWS_IN_FLOAT16, compute_dtype
from scheduler.machine.capability import check_build, check_kernels
from scheduler.machine.data_sheets import GPUS, known_gpu
from scheduler.machine.torch_build import TorchBuild
from tests.loaders.hostile.header_checkpoints import header_checkpoint
from tests.plan_samples import LLAMA3_8B, cpu, gpu

CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CUDA_12_6 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


def card(capability: int | None):
    return replace(gpu(16 * GIB), device_name="some card", capability=capability)


@pytest.mark.parametrize(
    ("capability", "architectures", "served"),
    [
        *((capability, CUDA_13, True) for capability in (75, 80, 86, 87, 89, 90, 100, 103, 120, 121, 130)),
        *((capability, CUDA_13, False) for capability in (50, 61, 70, 72, 110)),
        *((capability, CUDA_12_6, True) for capability in (52, 61, 70, 75, 89, 90)),
        *((capability, CUDA_12_6, False) for capability in (37, 100, 120)),
        (90, ("sm_90a",), True),
        (91, ("sm_90a",), False),
        (103, ("sm_100f",), True),
        (120, ("sm_100f",), False),
        (70, (), True),
        (None, CUDA_13, True),
    ],
)
def test_kernels_that_are_there_decide(capability, architectures, served) -> None:
    if served:
        check_kernels(card(capability), "2.13.0+cu130", architectures)
        return
    with pytest.raises(MachineError, match=rf"2\.13\.0\+cu130 has no kernels for some card .*{capability / 10:.1f}"):
        check_kernels(card(capability), "2.13.0+cu130", architectures)


@pytest.mark.parametrize(
    ("capability", "cuda", "served"),
    [
        (70, "13.0", False),
        (61, "12.8", False),
        (70, "12.6", True),
        (75, "13.0", True),
        (None, "13.0", True),
        (70, None, True),
    ],
)
def test_a_plan_knows_it_from_the_build(capability, cuda, served) -> None:
    if served:
        check_build(card(capability), TorchBuild("2.13.0", cuda))
        return
    with pytest.raises(MachineError, match=r"only for 7\.5 and later"):
        check_build(card(capability), TorchBuild("2.13.0", cuda))


def test_a_card_without_kernels_is_refused_by_name_before_anything_is_loaded(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(planning, "read_machine", lambda device: card(70))
    monkeypatch.setattr(planning, "torch_build", lambda: TorchBuild("2.13.0+cu130", "13.0"))
    target = header_checkpoint(tmp_path / "model", SHAPES["llama-3.2-1b"])
    assert main(["-m", str(target), "-d", "none", "--plan"]) == 2
    shown = capsys.readouterr().err
    assert (
        "some card (compute capability 7.0)" in shown and shown.count("--device cpu") == 1 and "Traceback" not in shown
    )


def test_loading_asks_the_kernels_of_the_build(monkeypatch) -> None:
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.torch.cuda, "get_arch_list", lambda: list(CUDA_13))
    with pytest.raises(MachineError, match="no kernels for some card"):
        loading.load_models(SimpleNamespace(machine=card(70)), None)


@pytest.mark.parametrize("name", ["v100", "V100 32GB", "tesla-v100", "P100", "gtx-1080-ti", "GTX 1060", "titan v"])
def test_cards_that_are_too_old_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"too old: .*Turing"):
        known_gpu(name)


def test_all_cards_of_the_table_are_served() -> None:
    for sheet in GPUS:
        machine = card(sheet.capability)
        check_build(machine, TorchBuild("2.13.0", "13.0"))
        check_kernels(machine, "2.13.0", CUDA_13)
    assert {known_gpu(name).capability for name in ("t4", "a100-80gb", "rtx-3090", "l40", "h100", "rtx-5090")} == {
        75, 80, 86, 89, 90, 120
    }  # fmt: skip


BFLOAT16 = replace(LLAMA3_8B, dtype="bfloat16", model_type="llama")


@pytest.mark.parametrize(
    ("dtype", "machine", "expected"),
    [
        ("bfloat16", card(75), "float16"),
        ("bfloat16", card(80), "bfloat16"),
        ("bfloat16", card(None), "bfloat16"),
        ("float16", card(75), "float16"),
        ("float32", card(75), "float32"),
    ],
)
def test_float16_takes_the_place_of_bfloat16(dtype, machine, expected) -> None:
    assert compute_dtype(replace(BFLOAT16, dtype=dtype), "auto", machine) == expected


@pytest.mark.parametrize("model_type", sorted(OVERFLOWS_IN_FLOAT16))
def test_models_that_overflow_in_float16_are_refused_with_what_runs(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"(?s){model_type} overflows in float16.*--dtype float32"):
        compute_dtype(replace(BFLOAT16, model_type=model_type), "auto", card(75))
    in_float32 = replace(BFLOAT16, model_type=model_type, dtype="float32")
    assert compute_dtype(in_float32, "float32", card(75)) == "float32"


def test_bfloat16_that_is_asked_for_is_refused_where_there_is_none() -> None:
    with pytest.raises(MachineError, match=r"(?s)compute capability 7\.5.*has no bfloat16.*--dtype float16"):
        compute_dtype(BFLOAT16, "bfloat16", card(75))
    assert compute_dtype(BFLOAT16, "bfloat16", cpu(16 * GIB)) == "bfloat16"


@pytest.mark.parametrize(("name", "dtype"), [("t4", "float16"), ("l4", "bfloat16")])
def test_the_plan_for_a_card_computes_in_what_it_has(name: str, dtype: str, tmp_path: Path, capsys) -> None:
    target = header_checkpoint(tmp_path / "model", SHAPES["llama-3.2-1b"])
    assert main(["-m", str(target), "-d", "none", "--plan", "--json", "--gpu", name, "--host-memory", "64GiB"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == dtype


def cast(values: list[float], stored: torch.dtype, computed: torch.dtype) -> torch.Tensor:
    source = torch.tensor(values, dtype=stored)
    target = torch.empty(len(values), dtype=computed)
    name = {torch.bfloat16: "BF16", torch.float32: "F32"}[stored]
    _copy(
        ByteRange(Path(), 0, source.nbytes, name, 0, computed),
        memoryview(source.view(torch.uint8).numpy()),
        memoryview(target.view(torch.uint8).numpy()),
    )
    return target


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_weight_that_float16_cannot_hold_is_refused_while_it_is_read(stored: torch.dtype) -> None:
    assert cast([1.5, -60000.0, 1e-9], stored, torch.float16)[0] == 1.5
    with pytest.raises(UnsupportedModelError, match=r"(?s)beyond what float16 holds, 65504.*--dtype float32"):
        cast([1.0, -1e5], stored, torch.float16)
    assert cast([1.0, -1e5], stored, torch.float32)[1] == torch.tensor(-1e5, dtype=stored).float()
    assert cast([torch.inf, torch.nan], stored, torch.float16).isfinite().logical_not().all(), "the files' own"
