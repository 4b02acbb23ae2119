"""Without a C compiler or Python.h Triton cannot start: that is known beforehand, said once, and planned for."""

import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loaders.checkpoint.low_bit_copy import copy_of
from loaders.dequantize import plain_cost, stacks, toolchain
from loaders.dequantize.plain import decode
from loaders.dequantize.side_by_side import BLOCK_VALUES
from loaders.dequantize.toolchain import why_no_kernels
from loaders.formats.schemes import Lossless
from loaders.sizes import GIB
from offload_runtime.chat.command import _show_what_comes
from scheduler.machine import machine as machine_module
from scheduler.machine.machine import read_machine
from scheduler.machine.nvml import GPUReading
from scheduler.plan.pass_cost import EXPERT_MATRICES, LAUNCH_SECONDS, LAYER_MATRICES, PassCost
from scheduler.plan.plan import Limits, Plan, Tier, make_plan
from scheduler.plan.table import format_plan
from tests.loaders.dequantize.test_plain_decoding import MATRICES, Moved, output
from tests.plan_samples import LLAMA2_70B, LLAMA3_8B, cpu, gpu, packed

REASON = "Triton lacks a C compiler (sudo apt install gcc python3-dev)"
PACKED_70B = replace(
    LLAMA2_70B,
    layers=tuple(packed(layer, layer.nbytes // 4) for layer in LLAMA2_70B.layers),
    stored_dtype="AWQ 4-bit",
    decode_bytes=GIB,
)
SPEED = {"flops": 1e14, "attention_flops": 5e13, "memory_bandwidth": 8e11}


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered, here or in Triton."""
    why_no_kernels.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    yield
    monkeypatch.undo()
    why_no_kernels.cache_clear()


def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = sysconfig.get_paths
    monkeypatch.setattr(sysconfig, "get_paths", lambda *given, **named: known(*given, **named) | {"include": tmp_path})


def with_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "cc"))


def with_a_compiler_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc")


def triton_s_own_attempt(tmp_path: Path) -> str | None:
    """The name of the error that Triton's way to build its driver ends with."""
    build = pytest.importorskip("triton.runtime.build", reason="triton is not installed: PyTorch for CUDA brings it")
    getattr(build, "_find_compiler", SimpleNamespace(cache_clear=lambda: None)).cache_clear()
    source = tmp_path / "driver.c"
    source.write_text("#include <Python.h>\n")
    try:
        build._build("driver", str(source), str(tmp_path), [], [], [], ["-w"])
    except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
        return type(error).__name__
    return None


@pytest.mark.skipif(shutil.which("gcc") is None or why_no_kernels() is not None, reason="no compiler here")
@pytest.mark.parametrize(
    ("lacking", "error", "word"),
    [
        (None, None, None),
        (with_a_compiler_named, None, None),
        (without_compiler, "RuntimeError", "a C compiler ("),
        (without_headers, "CalledProcessError", "Python.h ("),
        (with_a_compiler_that_is_not_there, "FileNotFoundError", "a C compiler ("),
    ],
)
def test_what_is_lacking_is_known_where_triton_would_fail(lacking, error, word, monkeypatch, tmp_path, capfd) -> None:
    if lacking:
        lacking(monkeypatch, tmp_path)
    assert triton_s_own_attempt(tmp_path) == error
    reason = why_no_kernels()
    assert (reason is None) == (error is None)
    if word:
        assert word in reason and "\n" not in reason


def test_both_may_be_lacking_and_triton_itself(monkeypatch, tmp_path) -> None:
    without_compiler(monkeypatch, tmp_path)
    without_headers(monkeypatch, tmp_path)
    monkeypatch.setattr(toolchain, "find_spec", lambda name: object())
    assert "a C compiler and Python.h (" in why_no_kernels()
    why_no_kernels.cache_clear()
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    assert why_no_kernels() == "Triton is not installed (pip install triton)"


@pytest.mark.parametrize(
    ("release", "own", "command"),
    [
        ({"ID": "debian"}, True, "sudo apt install gcc python3-dev"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, True, "sudo apt install gcc python3-dev"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, False, f"sudo apt install gcc python3.{sys.version_info.minor}-dev"),
        ({"ID": "fedora"}, True, "sudo dnf install gcc python3-devel"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, True, "sudo dnf install gcc python3-devel"),
        ({"ID": "opensuse-leap", "ID_LIKE": "suse opensuse"}, True, "sudo zypper install gcc python3-devel"),
        ({"ID": "arch"}, True, "sudo pacman -S gcc"),
        ({"ID": "void"}, True, "install gcc and Python's headers"),
    ],
)
def test_what_installs_it(release, own, command, monkeypatch, tmp_path) -> None:
    """own: whether the Python that runs is the distribution's."""
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    python = Path("/usr/bin/python3" if own else "/opt/python/bin/python3").resolve()
    monkeypatch.setattr(sys, "_base_executable", str(python))
    without_headers(monkeypatch, tmp_path)
    monkeypatch.setattr(toolchain, "find_spec", lambda name: object())
    assert why_no_kernels().endswith(f"({command})")


def test_plain_torch_decodes_without_another_word(monkeypatch, tmp_path) -> None:
    """The start has said why: nothing is tried, and no compiler complains."""
    without_compiler(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "loaders.dequantize.kernels", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stacks.fused_kernels.__wrapped__() is None


def test_what_triton_says_of_its_default_is_no_news(monkeypatch) -> None:
    monkeypatch.setattr(stacks, "why_no_kernels", lambda: None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stacks.fused_kernels.__wrapped__()
        said.clear()
        warnings.warn("TRITON_DEFAULT_FP_FUSION is unset: defaulting to …", UserWarning, stacklevel=1)
        assert not said


@pytest.mark.parametrize("experts", [0, 128])
def test_every_matrix_is_launched_for_itself_by_plain_torch(experts) -> None:
    """So quick a GPU that launching is all that counts."""
    layers = tuple(replace(layer, experts=experts, expert_bytes=layer.nbytes // 2) for layer in PACKED_70B.layers)
    machine = replace(gpu(24 * GIB), flops=1e18, memory_bandwidth=1e18, layer_seconds=1e-3, no_kernels=REASON)
    cost = PassCost(replace(PACKED_70B, layers=layers), (Tier.HOST,) * len(layers), 2, machine)
    launching = (LAYER_MATRICES + EXPERT_MATRICES * experts) * plain_cost.LAUNCHES * LAUNCH_SECONDS
    assert cost.seconds(1, 1, 0).compute == pytest.approx(len(layers) * (1e-3 + launching), rel=0.01)


def test_the_machine_is_read_with_it(monkeypatch) -> None:
    reading = GPUReading("RTX 4090", GIB, GIB, "GPU-1", "580", None)
    monkeypatch.setattr(machine_module, "read_gpu", lambda index: reading)
    monkeypatch.setattr(machine_module, "why_no_kernels", lambda: REASON)
    assert read_machine("cuda").no_kernels == REASON
    assert read_machine("cpu").no_kernels is None


def planned(no_kernels: str | None) -> Plan:
    return make_plan(PACKED_70B, None, replace(gpu(24 * GIB, 192 * GIB), **SPEED, no_kernels=no_kernels))


def test_the_plan_says_which_decodes_predicts_its_time_and_leaves_it_memory() -> None:
    plain, fused = planned(REASON), planned(None)
    assert "by fused kernels." in format_plan(fused) and fused.slow_dequantizing is None
    assert f"dequantized by plain torch, which is slower: {REASON}." in " ".join(format_plan(plain).split())
    assert (plain.dequantized_by, fused.dequantized_by) == ("plain torch", "fused kernels")
    (item,) = (item for item in plain.items if item.name == "dequantizing by plain torch")
    assert item.device_bytes == plain_cost.BLOCK_BYTES
    values = sum(layer.decoded_bytes for layer in PACKED_70B.layers) / 2
    slower, quicker = (plan.target_cost(PACKED_70B).seconds(1, 1, 0).compute for plan in (plain, fused))
    moved = sum(layer.packed_bytes + layer.decoded_bytes for layer in PACKED_70B.layers)
    assert slower - quicker == pytest.approx((values * plain_cost.MOVED_BYTES - moved) / 8e11)
    assert plain.seconds_per_pass > fused.seconds_per_pass


def test_a_copy_is_dequantized_too_where_layers_stream() -> None:
    copy, limits = copy_of(LLAMA3_8B, 4), Limits(context_length=1024, tree_size=64)

    def of_copy(gibibytes: int, no_kernels: str | None) -> Plan:
        return make_plan(LLAMA3_8B, copy, replace(gpu(gibibytes * GIB), no_kernels=no_kernels), limits)

    plain, fused, whole = of_copy(12, REASON), of_copy(12, None), of_copy(24, REASON)
    assert plain.slots and fused.slots and not whole.slots
    assert [plan.dequantized_by for plan in (plain, fused, whole)] == ["plain torch", "fused kernels", None]
    assert plain.slow_dequantizing is not None and REASON in plain.slow_dequantizing
    for plan, nbytes in ((plain, plain_cost.BLOCK_BYTES), (fused, 0), (whole, 0)):
        assert sum(item.device_bytes for item in plan.items if item.name == "dequantizing by plain torch") == nbytes


@pytest.mark.parametrize(
    ("spec", "machine"),
    [(LLAMA3_8B, replace(gpu(24 * GIB), no_kernels=REASON)), (PACKED_70B, cpu(192 * GIB))],
    ids=["nothing quantized", "on a processor"],
)
def test_nothing_is_said_where_it_does_not_matter(spec, machine) -> None:
    plan = make_plan(spec, None, machine)
    assert plan.dequantized_by is None and plan.slow_dequantizing is None
    assert "dequantiz" not in format_plan(plan)


@pytest.mark.parametrize("no_kernels", [REASON, None])
def test_the_start_says_in_one_line_what_to_install(no_kernels) -> None:
    lines: list[str] = []
    preparation = SimpleNamespace(plan=planned(no_kernels), packing=None, draft_note=None, link_note=None)
    _show_what_comes(SimpleNamespace(note=lines.append), preparation, SimpleNamespace(model="DIR"))
    about = [line for line in lines if "sudo apt install gcc python3-dev" in line]
    assert len(about) == (no_kernels is not None) and all("\n" not in line for line in about)


def test_bytes_moved_are_those_of_the_operations(monkeypatch) -> None:
    monkeypatch.setitem(BLOCK_VALUES, "meta", BLOCK_VALUES["cuda"])
    per_value = []
    for scheme, stored in MATRICES:
        if isinstance(scheme, Lossless):
            continue
        operands = {role: torch.empty(shape, dtype=dtype, device="meta") for role, (shape, dtype) in stored.items()}
        with Moved() as moved:
            decode(scheme, operands, output(scheme))
        per_value.append(moved.nbytes / BLOCK_VALUES["cuda"])
    assert sum(per_value) / len(per_value) == pytest.approx(plain_cost.MOVED_BYTES, rel=0.1)
