"""Figures of the machine are kept between starts, for the conditions they were measured under and for a week."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
import torch

from loaders.io.direct import ReadBandwidth
from loaders.sizes import GIB
from scheduler.machine import measurements, torch_build
from scheduler.machine.measurements import FILE, read_bandwidth, recall, remember, with_known_speed
from scheduler.streaming import bandwidth
from scheduler.streaming.bandwidth import measure_speed, with_speed
from tests.plan_samples import cpu, gpu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_remembered_is_recalled_under_the_same_conditions() -> None:
    assert recall("disk 1", "chunks") is None
    remember("disk 1", "chunks", {"bytes_per_second": 2e9})
    remember("disk 2", "chunks", {"bytes_per_second": 3e9})
    assert recall("disk 1", "chunks") == {"bytes_per_second": 2e9}
    assert recall("disk 2", "chunks") == {"bytes_per_second": 3e9}
    assert recall("disk 1", "other chunks") is None


@pytest.mark.parametrize(("age", "holds"), [(timedelta(days=6), True), (timedelta(days=8), False)])
def test_old_figures_count_for_nothing(age: timedelta, holds: bool, cache: Path) -> None:
    remember("disk 1", "chunks", {"bytes_per_second": 2e9})
    record = json.loads((cache / FILE).read_text())
    record["disk 1"]["date"] = (datetime.now(timezone.utc) - age).isoformat()
    (cache / FILE).write_text(json.dumps(record))
    assert (recall("disk 1", "chunks") is not None) == holds


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "{",
        "\x00\xff",
        '{"disk 1": 3}',
        '{"disk 1": {"conditions": "chunks", "date": 5, "figures": {"bytes_per_second": 1}}}',
        '{"disk 1": {"conditions": "chunks", "date": "2999-01-01T00:00:00+00:00", "figures": {"bytes_per_second": 1}}}',
        '{"disk 1": {"conditions": "chunks", "date": "%s", "figures": {"bytes_per_second": -1}}}',
        '{"disk 1": {"conditions": "chunks", "date": "%s", "figures": {"bytes_per_second": NaN}}}',
        '{"disk 1": {"conditions": "chunks", "date": "%s", "figures": {"bytes_per_second": "fast"}}}',
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(content: str, cache: Path) -> None:
    cache.mkdir()
    (cache / FILE).write_text(content.replace("%s", datetime.now(timezone.utc).isoformat()), encoding="latin-1")
    assert recall("disk 1", "chunks") is None
    remember("disk 1", "chunks", {"bytes_per_second": 2e9})
    assert recall("disk 1", "chunks") == {"bytes_per_second": 2e9}


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "file"))
    remember("disk 1", "chunks", {"bytes_per_second": 2e9})
    assert recall("disk 1", "chunks") is None


def measured(rate: float, direct: bool = True) -> Callable[..., ReadBandwidth]:
    return lambda *arguments, **named: ReadBandwidth(rate, direct, 1 << 20)


@pytest.mark.parametrize(
    "rate, direct, believed", [(15e9, True, True), (17e9, True, False), (3e9, False, True), (5e9, False, False)]
)
def test_a_speed_that_no_disk_has_is_not_believed(
    rate: float, direct: bool, believed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 16))
    monkeypatch.setattr(measurements, "measure_read_bandwidth", measured(rate, direct))
    assert read_bandwidth([file], 1 << 16) == (rate if believed else None)
    monkeypatch.setattr(measurements, "measure_read_bandwidth", measured(1e9))
    assert read_bandwidth([file], 1 << 16) == (rate if believed else 1e9), "only what was believed is remembered"


def test_a_remembered_speed_that_no_disk_has_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 16))
    remember(f"disk {file.stat().st_dev}", f"reads of {1 << 16} bytes", {"bytes_per_second": 40e9})
    monkeypatch.setattr(measurements, "measure_read_bandwidth", measured(1e9))
    assert read_bandwidth([file], 1 << 16) == 1e9


def test_holes_are_read_at_no_disk_s_speed(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    with file.open("wb") as handle:
        handle.write(bytes(4096))
        handle.truncate(1 << 26)
    assert read_bandwidth([file], 1 << 16) is None


def test_a_disk_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(measurements, "measure_read_bandwidth", measured(2e9))
    rate = read_bandwidth([file], 1 << 16)
    assert rate == 2e9

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measurements, "measure_read_bandwidth", refuse)
    assert read_bandwidth([file], 1 << 16) == rate
    with pytest.raises(AssertionError, match="measured again"):
        read_bandwidth([file], 1 << 17)


def test_the_device_is_measured_once_for_each_dtype_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def measure(device: object, dtype: object) -> dict[str, float]:
        asked.append(dtype)
        return {"flops": 1e12, "memory_bandwidth": 1e10}

    monkeypatch.setattr(bandwidth, "measure_speed", measure)

    def passes(device: object, dtype: object) -> dict[str, float]:
        return {"pass_seconds": 2e-3, "layer_seconds": 3e-4}

    machine = cpu(16 * GIB)
    known = with_speed(machine, "float32", passes)
    assert (known.flops, known.memory_bandwidth) == (1e12, 1e10) and with_speed(machine, "float32", passes) == known
    assert (known.pass_seconds, known.layer_seconds) == (2e-3, 3e-4)
    assert len(asked) == 1
    with_speed(machine, "bfloat16", passes)
    with_speed(replace(machine, driver="580.65"), "float32", passes)
    with_speed(replace(machine, cores=1), "float32", passes)
    assert len(asked) == 4


def test_measured_figures_replace_estimates_without_torch() -> None:
    machine = replace(gpu(24 * GIB), estimated=("flops", "link_bandwidth"), flops=5.0, uuid="GPU-1")
    assert with_known_speed(machine, "bfloat16") == machine
    subject = measurements.speed_subject(machine)
    remember(subject, measurements.speed_conditions(machine, "bfloat16"), {"flops": 7.0})
    known = with_known_speed(machine, "bfloat16")
    assert known.flops == 7.0 and known.estimated == ("link_bandwidth",)


def test_a_processor_can_be_measured() -> None:
    torch = bandwidth.torch
    figures = measure_speed(torch.device("cpu"), torch.float32)
    assert figures.keys() == {"flops", "memory_bandwidth", "product_bandwidth"} and all(
        value > 1e6 for value in figures.values()
    )


@pytest.mark.gpu
def test_a_gpu_and_its_link_can_be_measured() -> None:
    torch = bandwidth.torch
    figures = measure_speed(torch.device("cuda"), torch.bfloat16)
    assert figures.keys() == {"flops", "memory_bandwidth", "link_bandwidth", "pageable_bandwidth"}
    assert figures["link_bandwidth"] > 1e9 and figures["memory_bandwidth"] > figures["link_bandwidth"]


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_the_build_of_torch_is_what_its_own_version_says(
    cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata of PyPI's CUDA wheel say 2.13.0, which is not what torch itself says once it is imported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('was imported')")
    (tmp_path / "torch" / "version.py").write_text(
        f"from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = {cuda!r}\n"
    )
    spec = spec_from_file_location("torch", tmp_path / "torch" / "__init__.py")
    monkeypatch.setattr(torch_build, "find_spec", lambda name: spec)
    torch_build.torch_build.cache_clear()
    try:
        assert torch_build.torch_build() == torch_build.TorchBuild("2.13.0+cu130", cuda)
        machine = gpu(24 * GIB)
        conditions = measurements.speed_conditions(machine, "bfloat16")
        assert "torch 2.13.0+cu130," in conditions
        remember(measurements.speed_subject(machine), conditions, {"flops": 7.0})
        assert with_known_speed(machine, "bfloat16").flops == 7.0
    finally:
        torch_build.torch_build.cache_clear()


def test_what_a_start_measures_is_found_by_the_next_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_build.torch_build() == torch_build.TorchBuild(torch.__version__, torch.version.cuda)
    monkeypatch.setattr(bandwidth, "measure_speed", lambda device, dtype: {"flops": 7.0})
    assert with_speed(cpu(GIB), "float32", lambda device, dtype: {}) == with_known_speed(cpu(GIB), "float32")
    assert with_known_speed(cpu(GIB), "float32").flops == 7.0
