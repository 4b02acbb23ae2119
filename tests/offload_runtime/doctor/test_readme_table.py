"""The README's table of speeds is what the planner predicts."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.sizes import GIB
from offload_runtime.doctor.predictions import predictions
from scheduler.machine.data_sheets import planned_machine
from tests.plan_samples import cpu

README = Path(__file__).resolve().parents[3] / "README.md"
DISK = 3.5e9  # bytes per second, as the README says
MODELS = {"qwen2.5-32b": "Qwen2.5-32B, 0.5B", "llama-3-70b": "Llama-3-70B, 1B"}
ROW = re.compile(r"^\| ?([^|]*?) ?\| ([^|]+, [\d.]+B) \| ([\d.]+) → ([\d.]+)[^|]*\| ([\d.]+) → ([\d.]+)[^|]*\|$", re.M)


def rows() -> dict[tuple[str, str], list[float]]:
    """Speeds by card and model; a card's name stands in the first of its rows."""
    found, card = {}, ""
    for called, model, *speeds in ROW.findall(README.read_text(encoding="utf-8")):
        card = re.search(r"\((.*)\)", called)[1] if called else card
        found[card, model] = [float(speed) for speed in speeds]
    return found


@pytest.mark.parametrize("card", ["RTX 4080", "RTX 4090", "L40"])
def test_the_readme_says_what_is_predicted(card: str) -> None:
    machine = replace(planned_machine(card, cpu(64 * GIB), 64 * GIB), disk_bandwidth=DISK)
    told = {(each["model"], each["weights"]): each for each in predictions(machine, "bfloat16")}
    for model, called in MODELS.items():
        speeds = [
            told[model, weights][f"{kind}_tokens_per_second"]
            for weights in ("bfloat16", "int4")
            for kind in ("plain", "tree")
        ]
        assert rows()[card, called] == pytest.approx(speeds, rel=0.15, abs=0.05)


def test_a_large_model_in_16_bits_streams_from_disk_beside_64_gib() -> None:
    machine = replace(planned_machine("rtx-4090", cpu(64 * GIB), 64 * GIB), disk_bandwidth=DISK)
    speeds = [
        next(
            each
            for each in predictions(replace(machine, host_available=host), "bfloat16")
            if each["model"] == "llama-3-70b"
        )
        for host in (64 * GIB, 192 * GIB)
    ]
    slow, quick = (each["plain_tokens_per_second"] for each in speeds)
    assert slow < 0.5 * quick
