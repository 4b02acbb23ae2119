"""Whether what `constraints.txt` pins can be installed: a resolver's dry run, for every Python and build of PyTorch.

    python scripts/check_pins.py

Only metadata is fetched, from the index that pip is set up for. PyPI's wheels of torch for Linux are the CUDA build;
the CPU build comes from elsewhere, and a wheel of its metadata alone stands for it.

Exit codes: 0 the pins can be installed, or no index can be reached (said on stderr); 1 they cannot; 2 wrong use.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORM = "x86_64-manylinux_2_28"
NO_SOLUTION = 1  # uv's exit code; anything else but 0 lies in the machine or the network
_CUDA_ONLY = re.compile(r"(triton|nvidia|cuda)\b")


def main() -> int:
    """Check all; return the exit code."""
    status = 0
    environment = {**os.environ, **_index()}
    with tempfile.TemporaryDirectory(prefix="pins-") as directory:
        wheels = Path(directory)
        write_cpu_build(wheels, metadata("torch").get_all("Requires-Dist") or [])
        for build, options in (("index", ()), ("cpu", ("--find-links", str(wheels)))):
            for python in PYTHONS:
                run = _resolve(python, options, environment)
                if run.returncode not in (0, NO_SOLUTION):
                    print(f"not checked, no package index can be used here: {run.stderr.strip()}", file=sys.stderr)
                    return status
                torch = next((line for line in run.stdout.splitlines() if line.startswith("torch==")), run.stderr)
                right = run.returncode == 0 and torch.endswith("+cpu") == (build == "cpu")
                status |= not right
                print(
                    f"Python {python}, torch of the {build} build: {torch if right else f'FAILED: {torch}'}", flush=True
                )
    return status


def _resolve(python: str, options: tuple[str, ...], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """What an installation with all extras would consist of, on stdout."""
    command = (*(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"), *options)
    target = ("--python-version", python, "--python-platform", PLATFORM, "--all-extras")
    return subprocess.run(
        [*command, *target, "--constraint", "constraints.txt", "pyproject.toml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def _index() -> dict[str, str]:
    """pip's index in the words of uv, which does not read pip's configuration."""
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    urls = re.findall(r"^\S+\.index-url='(.*)'$", pip.stdout, re.MULTILINE)
    return {"UV_DEFAULT_INDEX": urls[-1]} if urls else {}


def write_cpu_build(directory: Path, required: Iterable[str]) -> None:
    """Write a wheel of torch that holds nothing but the metadata of the CPU build of the pinned version.

    required: what another build of it requires.
    """
    pin = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pin, "constraints.txt pins torch"
    version = f"{pin[1]}+cpu"
    lines = [
        "Metadata-Version: 2.1",
        "Name: torch",
        f"Version: {version}",
        *(f"Requires-Dist: {text}" for text in required if not _CUDA_ONLY.match(text)),
    ]
    tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(directory / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"torch-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"torch-{version}.dist-info/WHEEL", tag)
        wheel.writestr(f"torch-{version}.dist-info/RECORD", "")


if __name__ == "__main__":
    sys.exit(main())
