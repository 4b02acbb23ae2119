"""What a plan says that trees will bring, before anything is loaded."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.safetensors_files.headers import read_checkpoint
from offload_runtime.chat import main
from offload_runtime.errors import DoesNotFitError
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET, Options
from offload_runtime.planning.expected_acceptance import assumed_acceptance
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.planning import Preparation, prepare
from offload_runtime.speculation import acceptance_store
from offload_runtime.speculation.acceptance_store import ACCEPTANCE_FILE, Measurement, PairAcceptance, Setting
from sequoia_tree import expected_tokens, optimal_tree
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.choice.choose import damped
from tests.samples.tiny_models import checkpoint


@pytest.fixture
def draft() -> Iterator[Path]:
    """Another model, of which nothing is measured unless a test does."""
    directory = checkpoint("llama", seed=4, num_hidden_layers=1)
    yield directory
    (directory / ACCEPTANCE_FILE).unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this machine's speed, nothing is known from earlier starts."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path))


def preparation(draft: Path | None, **options: object) -> Preparation:
    return prepare(Options(checkpoint("llama"), draft, device="cpu", **options))  # type: ignore[arg-type]


def record(draft: Path, positional: list[float], temperature: float = 0.6) -> None:
    """Put a measurement beside the draft."""
    table = Acceptance.from_positional(positional, 10_000)
    pair = PairAcceptance("target", "draft", {Setting(temperature=temperature): Measurement(table)})
    acceptance_store.write(draft / ACCEPTANCE_FILE, pair, checkpoint("llama"))


def with_speed(known: Preparation, **speed: float) -> Preparation:
    return known.replanned(machine=replace(known.machine, **speed))  # type: ignore[arg-type]


def tokens_in(text: str) -> float:
    found = re.search(r"([\d.]+) tokens per pass", text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize(("tree", "gain"), [("auto", True), ("sequoia", False)])
def test_a_measured_pair(tree: str, gain: bool, draft: Path) -> None:
    """What traversal makes of it where that verifies, and not where it does not."""
    record(draft, [0.6, 0.2])
    (line,) = forecast(preparation(draft, tree=tree, tree_size=8, tree_depth=3))
    acceptance = damped([0.6, 0.2]) if gain else [0.6, 0.2]
    expected = expected_tokens(optimal_tree(acceptance, 8, 3), acceptance)
    assert tokens_in(line) == pytest.approx(expected, abs=0.051) and "measured for this pair" in line


def test_better_drafts_and_larger_trees_are_said_to_bring_more(draft: Path) -> None:
    values = []
    for first, size in ((0.3, 8), (0.7, 8), (0.7, 24)):
        record(draft, [first, 0.1])
        values += map(tokens_in, forecast(preparation(draft, tree_size=size, tree_depth=6)))
    assert values == sorted(set(values)) and len(values) == 3


def test_an_unmeasured_pair_goes_by_published_figures_and_the_size_of_the_draft(draft: Path) -> None:
    text = "\n".join(forecast(preparation(draft, tree="sequoia", tree_size=8, tree_depth=3)))
    values = sum(tensor.nbytes for tensor in read_checkpoint(draft).tensors.values()) / 4
    assumed = assumed_acceptance(values / 1e6)
    assert tokens_in(text) == pytest.approx(expected_tokens(optimal_tree(assumed, 8, 3), assumed), abs=0.051)
    assert "published" in text and "Not measured" in text
    assert assumed[0] < Acceptance.prior().falling()[0], "a draft of thousands of weights is no draft of billions"


def test_greedy_figures_do_not_stand_for_sampled_text(draft: Path) -> None:
    record(draft, [0.9, 0.05], temperature=0.0)
    assert "Not measured" in "\n".join(forecast(preparation(draft, tree_size=8, tree_depth=3)))


def test_tokens_per_second_only_where_seconds_are_known(draft: Path) -> None:
    record(draft, [0.6, 0.2])
    known = preparation(draft, tree_size=8, tree_depth=3)
    slow = replace(known, plan=replace(known.plan, seconds_per_pass=0.5))
    expected, pace = forecast(slow)
    found = re.search(r"about ([\d.]+) tokens/s", pace)
    assert found and float(found[1]) == pytest.approx(tokens_in(expected) / 0.5, rel=0.03)
    assert len(list(forecast(known))) == 1, "nothing streams: how long a pass takes is not known"


@pytest.mark.parametrize(("depth", "levels"), [(1, "in 1 level,"), (3, "in 3 levels,")])
def test_with_a_known_machine_the_parts_add_up(draft: Path, depth: int, levels: str) -> None:
    record(draft, [0.8, 0.1])
    tree = {"tree_size": 8, "tree_depth": depth, "context_length": 64}
    with pytest.raises(DoesNotFitError) as smallest:
        preparation(draft, device_memory=1, **tree)
    known = preparation(draft, device_memory=smallest.value.needed, **tree)
    assert known.plan.slots, "else the test would say nothing of streaming"
    first, tokens, one_pass, drafting, idle, *packed = forecast(
        with_speed(known, disk_bandwidth=1e6, flops=1e12, memory_bandwidth=1e10)
    )
    assert "verified by traversal" in tokens and packed[0] == "Acceptance: measured for this pair."
    numbers = [float(re.search(r"([\d.]+) s ", line)[1]) for line in (first, one_pass, drafting)]  # type: ignore[index]
    assert (numbers[1] + numbers[2]) / tokens_in(tokens) == pytest.approx(numbers[0], rel=0.02)
    assert levels in drafting
    disk, computing = (float(re.search(rf"{name} ([\d.]+) s", one_pass)[1]) for name in ("disk", "computing"))  # type: ignore[index]
    whole = numbers[1] + numbers[2]
    shares = [float(share) / 100 for share in re.findall(r"(\d+)%", idle)]
    assert shares == pytest.approx([max(0.0, 1 - disk / whole), 1 - (computing + numbers[2]) / whole], abs=0.01)
    assert any("would fit into memory whole" in line for line in packed)
    assert "disk" in one_pass and "link" not in one_pass and "computing" in one_pass and "side by side" in one_pass


def test_a_draft_that_is_no_help_is_said_to_be_none(draft: Path) -> None:
    record(draft, [0.01])
    passes = {"pass_seconds": 1e-3, "layer_seconds": 1e-3}
    known = with_speed(preparation(draft, tree_size=8, tree_depth=3), flops=1e9, memory_bandwidth=1e9, **passes)
    assert "With the draft: no faster here" in next(forecast(known))


def test_nothing_is_predicted_of_models_in_memory_whose_passes_were_not_measured(draft: Path) -> None:
    """Most of what they take is no matter of bandwidth."""
    record(draft, [0.6, 0.2])
    known = with_speed(preparation(draft, tree_size=8, tree_depth=3), flops=1e9, memory_bandwidth=1e9)
    (line,) = forecast(known)
    assert "Expected" in line and "tokens/s" not in line


def test_without_a_draft_there_is_nothing_to_expect(draft: Path) -> None:
    assert list(forecast(preparation(None))) == list(forecast(preparation(draft, tree="none"))) == []


def test_the_plan_of_the_chat_ends_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--model", str(DEMO_TARGET), "--draft", str(DEMO_DRAFT), "--device", "cpu"]
    assert main([*pair, "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tokens_in(lines[-1]) > 1.5 and "measured for this pair" in lines[-1]
    assert main([*pair, "--plan", "--tree", "none"]) == 0
    assert "Expected" not in capsys.readouterr().out
