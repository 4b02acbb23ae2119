"""Predicted seconds per token: the arithmetic between their parts, from numbers that can be checked by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import predict_drafts
from predict_drafts import LESS, forecast

from loaders.sizes import GIB
from offload_runtime.planning.expected_acceptance import _COPY_ACCEPTED
from scheduler.machine.machine import Machine
from sequoia_tree import expected_tokens, optimal_tree
from sequoia_tree.choice.choose import damped
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE

LINK, MEMORY, FLOPS = 25e9, 1e12, 1e15


def machine(gibibytes: int) -> Machine:
    """A made-up card whose launches take no time."""
    free = gibibytes * GIB
    speeds = {"flops": FLOPS, "attention_flops": 1e30, "memory_bandwidth": MEMORY, "layer_seconds": 1e-9}
    return Machine("cuda", "some GPU", free, free, 256 * GIB, 256 * GIB, 16, LINK, None, **speeds)


@pytest.fixture(scope="module")
def copied() -> dict[str, Any]:
    return forecast("llama-3-8b", "plain", "self:4", machine(12))


def acceptance(first: float) -> tuple[float, ...]:
    """The published vector with another first entry, as its rule corrects it."""
    later = [value * (1 - first) / (1 - DEFAULT_ACCEPTANCE[0]) for value in DEFAULT_ACCEPTANCE[1:]]
    return tuple(damped([first, *(min(value, first) for value in later)]).tolist())


def test_the_seconds_are_those_of_their_parts(copied: dict[str, Any]) -> None:
    whole = copied["pass_seconds"] + copied["draft_seconds"] + copied["verification_seconds"]
    assert copied["seconds_per_token"] == pytest.approx(whole / copied["tokens_per_pass"])
    assert copied["link_seconds"] == pytest.approx(copied["streamed_bytes"] / LINK)
    assert (
        max(copied["compute_seconds"], copied["link_seconds"] - whole + copied["pass_seconds"])
        <= copied["pass_seconds"]
    )
    assert copied["pass_seconds"] < copied["link_seconds"] + copied["compute_seconds"]


def test_tokens_are_those_of_the_best_tree_with_the_measured_acceptance(copied: dict[str, Any]) -> None:
    assert copied["acceptance"] == _COPY_ACCEPTED[4]
    vector = acceptance(_COPY_ACCEPTED[4])
    tree = optimal_tree(vector, copied["nodes"], copied["levels"])
    assert copied["tokens_per_pass"] == pytest.approx(expected_tokens(tree, vector), rel=1e-6)


def test_a_level_takes_what_its_weights_take_in_memory(copied: dict[str, Any]) -> None:
    """Each streamed layer: its code twice. Resident ones their 16 bits once, and the head, of 525 million."""
    layer, layers = 436_224_000, 32
    code = layer // 2 * 4 // 8 + layer // 2 // 32
    streamed = round(copied["streamed_bytes"] / layer)
    level = (streamed * 2 * code + (layers - streamed) * layer + 128_256 * 4096 * 2) / MEMORY
    assert 0 < streamed < layers
    assert copied["levels"] * level <= copied["draft_seconds"] < 1.1 * copied["levels"] * level + 5e-3


def test_less_acceptance_makes_tokens_slower(copied: dict[str, Any]) -> None:
    """At least by what the same tree would lose, and no more."""
    vectors = [acceptance(_COPY_ACCEPTED[4] - less) for less in (0.0, LESS)]
    tree = optimal_tree(vectors[0], copied["nodes"], copied["levels"])
    most = expected_tokens(tree, vectors[0]) / expected_tokens(tree, vectors[1])
    assert 1.0 < copied["less_accepted"] / copied["seconds_per_token"] <= most + 1e-6


def test_packed_weights_cross_the_link_in_fewer_bytes() -> None:
    plain, packed = (forecast("llama-3-8b", link, "llama-3.2-1b", machine(8)) for link in ("plain", "packed"))
    assert (
        packed["streamed_bytes"] < 0.72 * plain["streamed_bytes"]
        and packed["seconds_per_token"] < plain["seconds_per_token"]
    )


def test_what_does_not_fit_says_how_much_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "llama-3-70b", "--gpu", "rtx-4090", "--drafts", "self:4", "--link", "plain"]
    assert predict_drafts.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"| plain | self:4 | {_COPY_ACCEPTED[4]:.3f} | - | - |" in out and "self:4, plain, does not fit: 4" in out
    assert predict_drafts.main([*arguments, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert "seconds_per_token" not in row and row["reason"].endswith(" usable")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llama-3-8b"], "belong together"),
        (["--shape", "llama-9", "--gpu", "l40", "--drafts", "self"], "no shape 'llama-9'"),
        (["--shape", "tiny", "--gpu", "l41", "--drafts", "self"], "no GPU is known as 'l41'"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_drafts.main(arguments) == 2 and message in capsys.readouterr().err
