"""Loading any format takes the packed model and one layer of memory at most, by the system's own count.

The planner is given what that is and no more, so no layer is decoded for good. On a machine without a GPU the device's
memory is the host's; with one, what lies in host memory comes through the same reader.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.samples.quantized.large_packed_models import CASES, GGUF_KINDS, LAYERS, write_16_bits, write_case

IOS = ("direct", "buffered")


def measure(*cases: dict[str, Any]) -> list[dict[str, Any]]:
    """In one process, since starting it takes longer than all the rest."""
    command = [sys.executable, "-m", "tests.measure_loading", json.dumps(cases, default=str)]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def pair(case: str, directory: Path) -> dict[str, Path]:
    """A model of one layer to warm up with, and the large one."""
    return {name: write_case(case, directory / name, layers) for name, layers in (("small", 1), ("large", None))}


def test_every_format_takes_its_packed_size_and_a_unit(tmp_path):
    """Read directly and buffered in turn. The controls: what reads files whole, or keeps copies, takes more."""
    formats, cases = (*CASES, *GGUF_KINDS), []
    for number, name in enumerate(formats):
        cases.append({**pair(name, tmp_path / str(number)), "io": IOS[number % 2]})
    spoiled = [{**cases[0], "spoil": spoil} for spoil in ("reads files whole", "keeps copies")]
    *found, whole, copies = measure(*cases, *spoiled)
    for name, one in zip(formats, found, strict=True):
        assert one["packed"] > 50e6 > 6 * one["unit"]
        assert one["tiers"] == ["device"]
        assert 0.9 * one["packed"] < one["held"] <= one["packed"] + one["unit"], (name, one)
    for one in (whole, copies):
        assert one["held"] > one["packed"] + one["unit"], one


def test_packing_takes_the_packed_size_and_a_unit_in_16_bits(tmp_path):
    models = {name: write_16_bits(tmp_path / name, layers) for name, layers in (("small", 1), ("large", LAYERS))}
    [one] = measure({**models, "io": "direct", "quantize": "int4"})
    assert one["packed"] > 50e6 and one["tiers"] == ["device"]
    assert 0.9 * one["packed"] < one["held"] <= one["packed"] + one["unit_in_16_bits"], one
