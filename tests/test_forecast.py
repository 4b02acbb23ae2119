"""What a plan says that trees will bring, before anything is loaded."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from offload_runtime import acceptance_store
from offload_runtime.acceptance_store import ACCEPTANCE_FILE, Measurement, PairAcceptance, Setting
from offload_runtime.chat import main
from offload_runtime.forecast import forecast
from offload_runtime.planning import DEMO_DRAFT, DEMO_TARGET, Options, Preparation, prepare
from sequoia_tree import expected_tokens, optimal_tree
from sequoia_tree.acceptance import Acceptance
from tests.tiny_models import checkpoint


@pytest.fixture
def draft() -> Iterator[Path]:
    """Another model, of which nothing is measured unless a test does."""
    directory = checkpoint("llama", seed=4, num_hidden_layers=1)
    yield directory
    (directory / ACCEPTANCE_FILE).unlink(missing_ok=True)


def preparation(draft: Path | None, **options: object) -> Preparation:
    return prepare(Options(checkpoint("llama"), draft, device="cpu", **options))  # type: ignore[arg-type]


def record(draft: Path, positional: list[float], temperature: float = 0.6) -> None:
    """Put a measurement beside the draft."""
    table = Acceptance.from_positional(positional, 10_000)
    pair = PairAcceptance("target", "draft", {Setting(temperature=temperature): Measurement(table)})
    acceptance_store.write(draft / ACCEPTANCE_FILE, pair, checkpoint("llama"))


def tokens_in(text: str) -> float:
    found = re.search(r"Expected: ([\d.]+) tokens per pass", text)
    assert found, text
    return float(found[1])


def test_a_measured_pair(draft: Path) -> None:
    record(draft, [0.6, 0.2])
    known = preparation(draft, tree_size=8, tree_depth=3)
    (line,) = forecast(known)
    acceptance = [0.6, 0.2]
    expected = expected_tokens(optimal_tree(acceptance, 8, 3), acceptance)
    assert tokens_in(line) == pytest.approx(expected, abs=0.051) and "measured for this pair" in line


def test_better_drafts_and_larger_trees_are_said_to_bring_more(draft: Path) -> None:
    values = []
    for first, size in ((0.3, 8), (0.7, 8), (0.7, 24)):
        record(draft, [first, 0.1])
        values += map(tokens_in, forecast(preparation(draft, tree_size=size, tree_depth=6)))
    assert values == sorted(set(values)) and len(values) == 3


def test_an_unmeasured_pair_goes_by_published_figures(draft: Path) -> None:
    text = "\n".join(forecast(preparation(draft, tree_size=8, tree_depth=3)))
    prior = Acceptance.prior().falling()
    assert tokens_in(text) == pytest.approx(expected_tokens(optimal_tree(prior, 8, 3), prior), abs=0.051)
    assert "published" in text and "not measured" in text


def test_greedy_figures_do_not_stand_for_sampled_text(draft: Path) -> None:
    record(draft, [0.9, 0.05], temperature=0.0)
    assert "not measured" in "\n".join(forecast(preparation(draft, tree_size=8, tree_depth=3)))


def test_tokens_per_second_only_where_seconds_are_known(draft: Path) -> None:
    record(draft, [0.6, 0.2])
    known = preparation(draft, tree_size=8, tree_depth=3)
    slow = replace(known, plan=replace(known.plan, seconds_per_pass=0.5))
    expected, pace = forecast(slow)
    assert f"about {tokens_in(expected) / 0.5:.1f} tokens/s" in pace
    assert len(list(forecast(known))) == 1, "nothing streams: how long a pass takes is not known"


def test_without_a_draft_there_is_nothing_to_expect(draft: Path) -> None:
    assert list(forecast(preparation(None))) == list(forecast(preparation(draft, tree="none"))) == []


def test_the_plan_of_the_chat_ends_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--model", str(DEMO_TARGET), "--draft", str(DEMO_DRAFT), "--device", "cpu"]
    assert main([*pair, "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tokens_in(lines[-1]) > 1.5 and "measured for this pair" in lines[-1]
    assert main([*pair, "--plan", "--tree", "none"]) == 0
    assert "Expected" not in capsys.readouterr().out
