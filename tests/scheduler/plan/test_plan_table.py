"""The plan as text."""

from dataclasses import replace

import pytest

from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import GIB
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits, make_plan
from scheduler.plan.table import format_plan
from tests.plan_samples import LLAMA2_70B, LLAMA3_8B_INT4, LLAMA_68M, SMALLEST, TINY, TINY_DRAFT, cpu, gpu


def table(spec: ModelSpec, draft: ModelSpec | None, machine: Machine, limits: Limits | None = None) -> str:
    text = format_plan(make_plan(spec, draft, machine, limits))
    assert max(map(len, text.splitlines())) <= 100 and not text.endswith("\n")
    return text


def row(text: str, start: str) -> list[str]:
    """The words of the one line that begins with `start`, after it."""
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith(start)]
    return line.removeprefix(start).split()


def test_a_gpu_with_all_three_tiers() -> None:
    text = table(LLAMA2_70B, LLAMA_68M, gpu(24 * GIB, host=64 * GIB, disk=3e9))
    assert "Plan for Llama-2-70b (bfloat16, 138 GB of weights)" in text
    assert "on some GPU: 25.8 GB, 68.7 GB of RAM beside it, link 25.0 GB/s, disk 3.00 GB/s" in text
    assert row(text, "GPU") == ["RAM", "disk"]
    assert row(text, "target, 9 resident layers") == ["15.4", "GB", "-", "-"]
    assert row(text, "target, 71 streamed layers (2 slots)")[:2] == ["3.42", "GB"]
    assert row(text, "KV caches, 4096 + 512 tokens") == ["1.54", "GB", "-", "-"]
    assert row(text, "total")[2] == "/"
    assert "Tree: up to 512 nodes and 16 levels" in text


def test_a_prediction_only_from_measured_bandwidths() -> None:
    known = table(LLAMA2_70B, None, gpu(24 * GIB))
    assert "Predicted: 4.79 s per pass; without a draft 0.21 tokens/s." in known
    assert "No draft: each pass yields one token." in known
    assert "link has been measured" in table(LLAMA2_70B, None, gpu(24 * GIB, link=None))
    assert "disk has been measured" in table(LLAMA2_70B, None, gpu(24 * GIB, host=64 * GIB))
    both = table(LLAMA2_70B, None, gpu(24 * GIB, host=64 * GIB, link=None))
    assert "Speed: unknown until the link and the disk has been measured." in both


def test_a_cpu_has_no_gpu_column() -> None:
    text = table(LLAMA2_70B, LLAMA_68M, cpu(64 * GIB, disk=2e9))
    assert "GPU" not in text and row(text, "RAM") == ["disk"]
    assert "8 cores, 68.7 GB of RAM, disk 2.00 GB/s" in text
    assert "On the CPU, layers stream from disk: " in text


def test_says_when_memory_made_the_context_shorter() -> None:
    note = "Context: 256 tokens, for want of memory; with more it would be 4096."
    assert note in table(SMALLEST, None, cpu(4 * GIB), Limits(1_500_000))
    assert "Context" not in table(SMALLEST, None, cpu(4 * GIB), Limits(1_500_000, context_length=256))
    assert "Context" not in table(SMALLEST, None, cpu(4 * GIB))


@pytest.mark.parametrize(("machine", "place"), [(cpu(4 * GIB), "in memory"), (gpu(4 * GIB), "on the GPU")])
def test_says_when_nothing_is_streamed(machine: Machine, place: str) -> None:
    text = table(TINY, TINY_DRAFT, machine)
    assert f"The model fits {place} whole: nothing is streamed." in text and "Predicted" not in text


@pytest.mark.parametrize(
    ("tree_size", "rows", "words"),
    [
        (64, 100, "up to 37 new tokens are read in one pass, together with the first tree."),
        (64, 64, "up to 64 new tokens are read in one pass, before the first tree."),
        (1, 64, "up to 64 new tokens are read in one pass.\n"),
    ],
)
def test_says_how_prompts_are_read(tree_size: int, rows: int, words: str) -> None:
    plan = make_plan(LLAMA2_70B, None, gpu(24 * GIB))
    assert f"Prompts: {words}" in format_plan(replace(plan, tree_size=tree_size, nodes=tree_size, rows=rows))


def test_says_what_decoding_at_loading_takes() -> None:
    text = table(LLAMA3_8B_INT4, LLAMA3_8B_INT4, gpu(80 * GIB))
    assert (
        "Packed layers are decoded at loading, as far as memory goes; --device-memory SIZE keeps more packed." in text
    )
    assert row(text, f"draft {LLAMA3_8B_INT4.name} ({LLAMA3_8B_INT4.stored_dtype})")[1] == "GB"
    assert "decoded at loading" not in table(LLAMA3_8B_INT4, None, gpu(4 * GIB))


def test_one_row_is_one_row() -> None:
    text = table(TINY, None, gpu(4 * GIB), Limits(tree_size=1))
    assert len(row(text, "CUDA graphs, 1 row")) == 4


def test_says_what_is_kept_out_of_the_budgets() -> None:
    text = table(LLAMA2_70B, None, gpu(24 * GIB))
    assert "Left to the system, other programs, CUDA itself or a cap: 1.92 GB of the GPU, 14.8 GB of RAM." in text
    assert "or a cap: 60.1 GB of RAM." in table(LLAMA2_70B, None, cpu(64 * GIB, disk=2e9), Limits(8 * GIB))


def test_an_estimated_link_is_named_by_its_slot() -> None:
    machine = replace(gpu(24 * GIB), pcie="PCIe 4.0 x16", estimated=("link_bandwidth",))
    assert "PCIe 4.0 x16 about 25.0 GB/s" in table(LLAMA2_70B, None, machine)
    assert "PCIe" not in table(LLAMA2_70B, None, replace(machine, estimated=()))


def test_long_names_are_cut() -> None:
    name = "a-model-with-a-name-" + "that-goes-on-and-on-" * 6
    text = table(replace(LLAMA2_70B, name=name), replace(LLAMA_68M, name=name), gpu(24 * GIB))
    assert text.count("...") == 2


@pytest.mark.parametrize("width", [80, 40])
def test_it_fits_narrow_terminals_with_every_figure(width: int) -> None:
    for machine in (gpu(24 * GIB, host=64 * GIB, disk=3e9), cpu(64 * GIB, disk=2e9)):
        plan = make_plan(LLAMA2_70B, LLAMA_68M, machine)
        wide, narrow = format_plan(plan), format_plan(plan, width)
        assert max(map(len, narrow.splitlines())) <= width
        words = set(narrow.replace("/", " ").replace(",", " ").split())
        assert {word for word in wide.replace("/", " ").replace(",", " ").split() if word != "-"} <= words
        assert ("streamed layers (2 slots)" in narrow.replace("\n    ", " ")) == ("streamed layers (2 slots)" in wide)
