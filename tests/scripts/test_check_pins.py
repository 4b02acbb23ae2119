"""The check of the pins: what counts as wrong, and that a machine without an index is none of it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_pins  # noqa: E402


def answer(code: int, stdout: str = "", stderr: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.CompletedProcess([], code, stdout, stderr)


@pytest.mark.parametrize(
    ("python", "code", "cpu_build", "expected"),
    [
        (None, 0, "torch==2.13.0+cpu", 0),
        ("3.10", 1, "torch==2.13.0+cpu", 1),  # only the oldest Python finds no solution
        ("3.14", 1, "torch==2.13.0+cpu", 1),
        (None, 0, "torch==2.13.0", 1),  # the pin does not let the CPU build in
        ("3.10", 2, "torch==2.13.0+cpu", 0),  # no network
    ],
)
def test_a_conflict_fails_and_a_missing_index_does_not(
    python: str | None,
    code: int,
    cpu_build: str,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def resolve(version: str, options: tuple[str, ...], environment: dict[str, str]) -> object:
        if version == python:
            return answer(code, stderr="the reason")
        return answer(0, f"numpy==2\n{cpu_build if options else 'torch==2.13.0'}\n")

    monkeypatch.setattr(check_pins, "_resolve", resolve)
    assert check_pins.main() == expected
    shown = capsys.readouterr()
    assert ("FAILED" in shown.out) == bool(expected)
    assert ("not checked" in shown.err and "the reason" in shown.err) == (code == 2)


def test_the_wheel_that_stands_for_the_cpu_build_asks_for_no_cuda(tmp_path: Path) -> None:
    required = ["filelock", "nvidia-nccl-cu13==2; x", "triton==3.7.1; x", "cuda-bindings<14; x", "cuda-toolkit==13"]
    check_pins.write_cpu_build(tmp_path, required)
    (file,) = tmp_path.iterdir()
    with zipfile.ZipFile(file) as wheel:
        text = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    assert re.findall("^Requires-Dist: (.*)$", text, re.MULTILINE) == ["filelock"]
    assert re.search(r"^Version: \d+\.\d+\.\d+\+cpu$", text, re.MULTILINE)


def test_every_declared_dependency_is_pinned() -> None:
    """So that an installation is the same tomorrow; those that they need in turn are not pinned."""
    names = {
        re.split(r"[=;<> ]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    declared = re.findall(r'"([A-Za-z][\w-]*)>=', (ROOT / "pyproject.toml").read_text())
    assert {name.lower().replace("_", "-") for name in declared} <= names
