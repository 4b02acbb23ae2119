"""The comparison of methods: what it counts, writes and resumes."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.measure_acceptance.prompts import read_prompts
from offload_runtime.options.run_options import DEMO_TARGET, Options
from offload_runtime.speculation.acceptance_store import ACCEPTANCE_FILE, Measurement, PairAcceptance, Setting, write
from offload_runtime.speculation.automatic_tree import AutomaticTree
from offload_runtime.speculation.tree_policy import Situation
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.shaping.settings import Sampling
from tests.samples.tiny_models import checkpoint, perturbed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import compare_methods  # noqa: E402
import demo_corpus  # noqa: E402
from compare_methods import parse_arguments  # noqa: E402
from comparison.cells import METHODS, Cell, CountedReply, Grid, Measured, settings  # noqa: E402
from comparison.estimates import paired_ratio, tokens_per_pass  # noqa: E402
from comparison.same_contexts import Enough, Pair, Pass, SideBySide, before_end, build, up_to  # noqa: E402
from comparison.tables import draw_figure  # noqa: E402
from toolkit.prompts import HELD_OUT  # noqa: E402

QUICK = ("--device", "cpu", "--passes", "3", "--replies", "2", "--reply-tokens", "4", "--contexts", "6", "--quiet")
WARM, GREEDY = Setting(0.8), Setting(0.0)


@pytest.fixture(scope="module")
def pair() -> tuple[str, ...]:
    target = checkpoint("llama")
    return "--model", str(target), "--draft", str(perturbed(target, 0.3))


@pytest.fixture(scope="module")
def known_pair(pair, tmp_path_factory) -> tuple[str, ...]:
    """The pair with acceptance measured at one sampling."""
    draft = Path(shutil.copytree(pair[3], tmp_path_factory.mktemp("known") / "draft"))
    measured = {Setting(0.8): Measurement(Acceptance.from_positional([0.5, 0.25], 100.0))}
    write(draft / ACCEPTANCE_FILE, PairAcceptance("target", "draft", measured), Path(pair[1]))
    return *pair[:3], str(draft)


def lines(file: Path, kind: str = "cell") -> list[dict]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [record for record in records if record["record"] == kind]


def counted(prompt: int, tokens: int, contexts: int, seed: int = 0) -> CountedReply:
    return CountedReply(prompt, seed, tokens, contexts)


def measured(*replies: CountedReply, method: str = "sequoia") -> Measured:
    return Measured(Cell(method, 16, WARM), replies)


def test_samplings_are_there_once():
    assert settings([0.0, 0.6], [1.0, 0.9]) == [Setting(0.0), Setting(0.6), Setting(0.6, top_p=0.9)]


def test_a_last_pass_counts_whole():
    made = [Pass({}, [1] * count, False) for count in (3, 1, 4, 9)]
    assert up_to(6, iter(made)) == made[:3] and up_to(99, iter(made)) == made


def test_a_cell_goes_on_until_it_has_enough_and_greedy_ones_ask_once():
    pair, enough = Pair(Options(model=DEMO_TARGET), [[1], [2]], "sequoia", 8), Enough(contexts=7, replies=2)
    few, many = [counted(0, 5, 3), counted(1, 9, 3)], [counted(0, 5, 4), counted(1, 9, 3)]
    assert not enough.of(few, 2, pair, WARM) and enough.of(many, 2, pair, WARM) and enough.of(few, 2, pair, GREEDY)
    assert not enough.of(many[:1], 1, pair, GREEDY)


def test_a_record_is_read_back():
    one = measured(counted(0, 10.5, 5), counted(1, 30, 5))
    assert Measured.from_record(json.loads(json.dumps(one.as_record()))) == one


def test_intervals_are_those_of_a_ratio_of_clusters():
    result = measured(counted(0, 10, 5), counted(1, 30, 5), counted(0, 10, 5, seed=2))
    estimate = tokens_per_pass(result)
    residuals = np.array([20 - 10 * 50 / 15, 30 - 5 * 50 / 15])
    assert estimate.value == pytest.approx(50 / 15)
    assert estimate.half_width == pytest.approx(12.706 * math.sqrt(2 * (residuals**2).sum()) / 15, rel=1e-4)
    assert math.isnan(tokens_per_pass(measured(counted(0, 10, 5))).low)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(400):
        ends = rng.integers(1, 30, size=16)
        replies = [counted(i, int(rng.integers(1, 8, size=n).sum()), int(n)) for i, n in enumerate(ends)]
        estimate = tokens_per_pass(measured(*replies))
        inside.append(estimate.low <= 4 <= estimate.high)
    assert 0.9 < np.mean(inside) < 0.98


def test_ratios_are_paired():
    ours = measured(counted(0, 20, 5), counted(1, 60, 5), counted(2, 99, 1))
    theirs = measured(counted(0, 10, 5), counted(1, 30, 5), counted(3, 7, 7))
    ratio = paired_ratio(ours, theirs)
    assert ratio is not None and ratio.value == pytest.approx(2)  # by prompts 0 and 1, in both of which it is 2
    assert ratio.low == pytest.approx(2) == pytest.approx(ratio.high)
    assert paired_ratio(ours, measured(counted(4, 1, 1))) is None


def test_table_and_kept_cells(known_pair, tmp_path, capsys):
    file = tmp_path / "cells.jsonl"
    run = [*known_pair, *QUICK, "--sizes", "4,6", "--top-ps", "1", "--json", str(file)]
    more = [*run, "--temperatures", "0,0.8"]
    assert compare_methods.main([*more, "--methods", "sequoia,sequoia-damped,adaptive"]) == 0
    text = capsys.readouterr().out
    assert "starts of the passes in which `sequoia` writes" in text and "–" not in text
    assert "## Temperature 0\n" in text and "## Temperature 0.8, top-p 1\n" in text and "| nodes | 4 | 6 |" in text
    assert text.count("| sequoia | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |") == 2
    assert sum("**" in line for line in text.splitlines()) >= 2
    found = lines(file)
    assert {(c["method"], c["size"], c["temperature"]) for c in found} == {
        (method, size, t) for method in ("sequoia", "sequoia-damped", "adaptive") for size in (4, 6) for t in (0.0, 0.8)
    }
    warm = [c for c in found if c["temperature"]]
    assert all(sum(r[3] for r in c["replies"]) >= 3 and len(c["replies"]) >= 2 for c in warm)

    file.write_text(file.read_text() + '{"record": "cell", "meth')  # as a run leaves it that is killed
    assert compare_methods.main([*more, "--methods", "sequoia,topk"]) == 0
    again = lines(file)
    assert again[: len(found)] == found and {c["method"] for c in again[len(found) :]} == {"topk"}
    contexts: dict[tuple, set] = {}
    for record in again:
        cell = record["size"], record["temperature"]
        contexts.setdefault(cell, set()).add(tuple((reply[0], reply[1], reply[3]) for reply in record["replies"]))
        assert all(reply[3] <= reply[2] <= 6 * reply[3] for reply in record["replies"])
    assert all(len(same) == 1 for same in contexts.values())  # those of a later run are the same ones
    assert compare_methods.main([*more, "--seed", "5"]) == 2
    assert "seed 0, this run has 5" in capsys.readouterr().err


def test_kept_lines_must_be_ours(pair, tmp_path, capsys):
    file = tmp_path / "other.jsonl"
    file.write_text('{"record": "cell", "method": "sequoia"}\n')
    assert compare_methods.main([*pair, *QUICK, "--json", str(file)]) == 2
    assert f"--json {file}: line 1" in capsys.readouterr().err


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    kinds, methods = settings([0.5, 1.0], [0.5]), ("sequoia", "topk")
    result = measured(counted(0, 4, 2), counted(1, 9, 3))
    cells = [Cell(method, size, kind) for method in methods for size in (2, 4) for kind in kinds]
    found = {cell: replace(result, cell=cell) for cell in cells}
    draw_figure(Grid(methods, [2, 4], kinds, found), tmp_path / "figure")
    text = (tmp_path / "figure").read_text()
    shown = ("<svg", "nodes of a tree", "temperature 0.5, top-p 0.5", "temperature 1, top-p 0.5", "sequoia", "topk")
    assert all(words in text for words in shown)


@pytest.mark.parametrize(("driver", "known"), [("sequoia", Acceptance.prior()), ("adaptive", Acceptance.empty())])
def test_the_driver_writes_what_it_writes_alone_and_yields_as_much(driver, known):
    """The runtime knows nothing of the pair either, so its static tree is that of the prior."""
    options = Options(model=checkpoint("llama"), draft=perturbed(checkpoint("llama"), 0.05), device="cpu")
    pair, enough = Pair(options, [[5, 17, 3, 88, 41, 9] * 3], driver, 32), 32  # the prompt repeats itself
    with pair.models(8, 2) as models:
        side_by_side = SideBySide.of(pair, models, known, WARM, ("sequoia-traversal", driver))
        passes = up_to(enough, side_by_side.passes(pair.prompts[0], seed=0))
    rule = METHODS[driver].verification
    with OffloadRuntime(pair.prepare(8, tree=driver, verification=rule, tree_size=8, tree_depth=2)) as runtime:
        alone = up_to(enough, runtime.stream(pair.prompts[0], **vars(WARM), seed=0))
    assert [made.token_ids for made in passes] == [step.token_ids for step in alone] and len(passes) > 9
    surprises = np.array([len(made.token_ids) - made.yields[driver] for made in passes])
    assert (surprises**2).mean() > 0.02
    assert abs(surprises.sum()) < 3 * math.sqrt((surprises**2).sum())


@pytest.mark.parametrize("driver", ["sequoia", "adaptive"])
def test_what_counts_ends_with_the_text(driver):
    model, ends = checkpoint("llama"), frozenset(range(0, 96, 6))
    pair = Pair(Options(model=model, draft=perturbed(model, 0.05), device="cpu"), [[5, 17, 3, 88, 41, 9]], driver, 32)
    with pair.models(8, 3) as models:
        side_by_side = SideBySide.of(pair, models, Acceptance.prior(), WARM, [driver])
        side_by_side = replace(side_by_side, end_token_ids=ends)
        passes = [made for seed in range(30) for made in side_by_side.passes(pair.prompts[0], seed)]
    ended = [made for made in passes if made.ended]
    assert len(ended) > 15 and all(made.token_ids[-1] in ends for made in ended)
    surprises = np.array([len(made.token_ids) - made.yields[driver] for made in passes])
    assert abs(surprises.sum()) < 3 * math.sqrt((surprises**2).sum())


def test_contexts_near_the_end_are_the_last_ones_of_a_text_that_ends():
    made = [Pass({}, [1] * count, False) for count in (4, 3, 2)]
    assert before_end(made, 9) == []
    made.append(Pass({}, [1], True))
    assert before_end(made, 6) == made[1:] and before_end(made, 5) == made[2:] and before_end(made, 99) == made


def test_no_text_that_ends_is_no_endless_search(pair, capsys):
    run = [*pair, *QUICK, "--sizes", "4", "--methods", "sequoia"]
    assert compare_methods.main([*run, "--near-end", "8", "--temperatures", "0.8", "--top-ps", "1"]) == 2
    assert "no text ended" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [WARM, GREEDY])
@pytest.mark.parametrize("contexts", [0, 200])
def test_the_damped_tree_is_the_one_that_the_runtime_makes(setting, contexts):
    options = Options(model=checkpoint("llama"), draft=perturbed(checkpoint("llama"), 0.05), device="cpu")
    pair, sampling = Pair(options, [[5, 17, 3]], "sequoia", 8), Sampling(**vars(setting))
    known = Acceptance.from_positional([0.3, 0.2, 0.1], contexts) if contexts else Acceptance.empty()
    store = SimpleNamespace(measured=lambda sampling: known)
    plan = SimpleNamespace(slots=1, device="cpu", tree_size=24, nodes=24, texts=1, tree_depth=12, seconds_per_pass=None)
    with pair.models(24, 12) as models:
        automatic = AutomaticTree(models.draft, models.target, plan, 12, "traversal", store)
        theirs = automatic.method(Situation(sampling, 3, repeatable=True))
        ours = build("sequoia-damped", models.draft, known, sampling, 24, 12)
        sequoia = build("sequoia-traversal", models.draft, known, sampling, 24, 12)
        trees = [tuple(grown_tree(models.draft, method, sampling).parents) for method in (ours, theirs, sequoia)]
    assert ours.rule == theirs.rule and trees[0] == trees[1]
    assert (trees[0] == trees[2]) == (setting.temperature == 0)  # only sampling reaches deeper


def grown_tree(draft, method, sampling):
    draft.model.cache.truncate(0)
    return method.grow([5, 17, 3], sampling, torch.Generator().manual_seed(0)).tree


def test_what_was_measured_of_a_pair_is_not_measured_again(known_pair, tmp_path):
    target, draft = map(Path, known_pair[1::2])
    files = {file: file.read_bytes() for file in draft.iterdir()}
    notes: list[str] = []
    complete = Pair(Options(model=target, draft=draft, device="cpu"), [[5, 6, 7]], "sequoia", reply_tokens=4)
    tables = complete.acceptance([WARM, GREEDY], contexts=4, note=notes.append)
    assert (tables[WARM].positions, tables[GREEDY].positions) == (100, 4)
    assert len(notes) == 1 and "temperature 0" in notes[0] and "0.8" not in notes[0]
    assert {file: file.read_bytes() for file in draft.iterdir()} == files


def test_default_prompts_are_held_out():
    prompts = read_prompts(HELD_OUT)
    assert len(prompts) == len(set(prompts)) >= 48

    def is_held_out(prompt: str) -> bool:
        name = prompt.split("`")[1]
        parts = f"topic.{name}".split(".") if "topic" in prompt else name.split(".")
        return any(demo_corpus.is_held_out(".".join(parts[:count])) for count in range(1, len(parts) + 1))

    assert sum(map(is_held_out, prompts)) >= 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "sequoia,best"), "there is no method 'best'"),
        (("--sizes", "0"), "0 is out of range"),
        (("--sizes", "16,x"), "'x' is not a whole number"),
        (("--depth", "64"), "out of range"),
        (("--tree", "chain"), "--methods"),
        (("--driver", "plain"), "there is no method 'plain'"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_figure_without_matplotlib_is_told_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(compare_methods, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--plot", "figure"])
    assert ended.value.code == 2 and "pip install matplotlib" in capsys.readouterr().err


def test_what_cannot_be_compared_is_told_in_a_line(capsys):
    assert compare_methods.main(["--model", str(checkpoint("llama")), "--quiet"]) == 2
    assert "--draft DIR" in capsys.readouterr().err
