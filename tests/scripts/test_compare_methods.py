"""The comparison of methods: what it counts, writes and resumes, and the target as its own draft."""

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
from safetensors.torch import load_file

from offload_runtime.errors import UsageError
from offload_runtime.generation.decode import Step
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
from comparison.cells import METHODS, Cell, CountedReply, Measured, cell, cells, settings  # noqa: E402
from comparison.estimates import paired_ratio, tokens_per_pass  # noqa: E402
from comparison.measure import Workload, measure_cell, up_to  # noqa: E402
from comparison.options import parse_arguments  # noqa: E402
from comparison.pair import Pair  # noqa: E402
from comparison.plots import draw_figure  # noqa: E402
from comparison.rounding import GRIDS, rounded_draft  # noqa: E402
from comparison.same_contexts import Pass, SideBySide, before_end, build  # noqa: E402
from comparison.tables import Grid  # noqa: E402
from toolkit.prompts import HELD_OUT  # noqa: E402

QUICK = ("--device", "cpu", "--passes", "3", "--replies", "2", "--reply-tokens", "4", "--quiet")
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


def counted(prompt: int, tokens: int, passes: int, seed: int = 0) -> CountedReply:
    return CountedReply(prompt, seed, tokens, passes)


def measured(*replies: CountedReply, method: str = "sequoia") -> Measured:
    return Measured(Cell(method, 16, 15, WARM), replies, 1, 0.5, 0.5)


def step(*tokens: int, accepted: int | None = None, finish_reason: str | None = None) -> Step:
    accepted = len(tokens) - 1 if accepted is None else accepted
    return Step(list(tokens), 9, accepted, 0.25, 0.5, 0, finish_reason)


def test_cells_follow_the_papers_comparison_without_doubles():
    kinds = settings([0.0, 0.6], [1.0, 0.9])
    assert kinds == [Setting(0.0), Setting(0.6), Setting(0.6, top_p=0.9)]
    grid = list(cells(METHODS, [16, 64, 256], 31, kinds))
    assert len(grid) == len(set(grid))
    assert {c.size for c in grid if c.method == "plain"} == {1}
    assert {c.size for c in grid if c.method == "chain"} == {16, 32}  # a chain ends at the depth limit
    assert {(c.size, c.depth) for c in grid if c.method == "sequoia"} == {(16, 15), (64, 31), (256, 31)}
    assert [c.size for c in cells(["chain"], [64, 256], 31, kinds[:1], "sequoia")] == [64, 256]  # two sets of contexts


def test_a_last_pass_counts_whole_and_a_text_counts_to_its_end():
    replies = {
        0: [step(1, 2, 3), step(1), step(1, 2, 3, 4), step(9)],  # the third reaches 6 tokens, and has 8
        1: [step(1, 2), step(3, accepted=4, finish_reason="stop")],
        2: [step(1, 2), step(3, finish_reason="length")],
    }
    workload = Workload(3, 6, passes=1, replies=3, seed=100)
    result = measure_cell(
        Cell("sequoia", 16, 15, WARM), lambda prompt, seed: (step for step in replies[prompt]), workload
    )
    assert result.replies == (
        CountedReply(0, 100, 8, 3),
        CountedReply(1, 101, 3, 2),
        CountedReply(2, 102, 2, 1),
    )
    assert (result.tokens, result.passes) == (13, 6)
    assert (result.timed_passes, result.draft_seconds, result.target_seconds) == (3, 0.75, 1.5)
    assert Measured.from_record(json.loads(json.dumps(result.as_record()))) == result


def test_a_cell_goes_on_until_it_has_enough_and_greedy_ones_ask_once():
    workload = Workload(2, 2, passes=7, replies=2, seed=0)

    def reply(prompt, seed):
        yield from (step(1), step(1))

    sampled = measure_cell(Cell("sequoia", 16, 15, WARM), reply, workload)
    assert [(r.prompt, r.seed) for r in sampled.replies] == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert len(measure_cell(Cell("sequoia", 16, 15, GREEDY), reply, workload).replies) == 2


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


def test_table_json_and_resume(pair, tmp_path, capsys):
    file, table = tmp_path / "cells.jsonl", tmp_path / "table.md"
    grid = (*pair, *QUICK, "--sizes", "4,8", "--temperatures", "0,0.8", "--top-ps", "1")
    assert compare_methods.main([*grid, "--methods", "plain,sequoia", "--json", str(file)]) == 0
    found = lines(file)
    assert {(c["method"], c["size"], c["temperature"]) for c in found} == {
        (method, size, t) for method, size in (("plain", 1), ("sequoia", 4), ("sequoia", 8)) for t in (0.0, 0.8)
    }
    by_cell = {(c["method"], c["size"], c["temperature"]): c for c in found}
    assert all(reply[2] == reply[3] for reply in by_cell["plain", 1, 0.8]["replies"])  # a token a pass
    sequoia = by_cell["sequoia", 8, 0.8]
    assert sum(reply[3] for reply in sequoia["replies"]) >= 3 and len(sequoia["replies"]) >= 2
    assert sequoia["draft_seconds"] > 0 < sequoia["target_seconds"]

    file.write_text(file.read_text() + '{"record": "cell", "meth')  # as a run leaves it that is killed
    more = [*grid, "--methods", "plain,sequoia,topk", "--resume", str(file), "--markdown", str(table)]
    assert compare_methods.main(more) == 0
    again = lines(file)
    assert again[: len(found)] == found and {c["method"] for c in again[len(found) :]} == {"topk"}
    text = table.read_text()
    assert "## Temperature 0\n" in text and "## Temperature 0.8, top-p 1\n" in text
    assert "| nodes | 4 | 8 |" in text and "| plain | 1.00 ± 0.00 | 1.00 ± 0.00 |" in text
    assert "| sequoia | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |" in text
    assert sum(line.count("**") == 4 for line in text.splitlines()) >= 1 and "–" not in text

    capsys.readouterr()
    assert compare_methods.main([*grid, "--methods", "chain", "--resume", str(file), "--only-tables"]) == 0
    assert "| chain | – | – |" in capsys.readouterr().out and lines(file) == again
    assert compare_methods.main([*more, "--seed", "5"]) == 2
    assert "seed 0, this run has 5" in capsys.readouterr().err


def test_resumed_lines_must_be_ours(pair, tmp_path, capsys):
    file = tmp_path / "other.jsonl"
    file.write_text('{"record": "cell", "method": "sequoia"}\n')
    assert compare_methods.main([*pair, *QUICK, "--resume", str(file)]) == 2
    assert f"--resume {file}: line 1" in capsys.readouterr().err


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    kinds, methods = settings([0.5, 1.0], [0.5]), ("sequoia", "topk")
    result = measured(counted(0, 4, 2), counted(1, 9, 3))
    found = {c: replace(result, cell=c) for c in cells(methods, [2, 4], 3, kinds)}
    draw_figure(Grid(methods, [2, 4], 3, kinds, found), tmp_path / "figure")
    text = (tmp_path / "figure").read_text()
    shown = ("<svg", "nodes of a tree", "temperature 0.5, top-p 0.5", "temperature 1, top-p 0.5", "sequoia", "topk")
    assert all(words in text for words in shown)
    with pytest.raises(UsageError, match=r"--plot .*No such file"):
        draw_figure(Grid(methods, [2, 4], 3, kinds, found), tmp_path / "none" / "figure")


def test_a_figure_without_matplotlib(pair, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("comparison.plots.find_spec", lambda name: None)
    assert compare_methods.main([*pair, *QUICK, "--plot", str(tmp_path / "figure")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("bits", GRIDS)
@pytest.mark.parametrize("columns", [64, 100, 20])
def test_rounding_stays_within_half_a_step(bits, columns):
    grid = GRIDS[bits]
    weight = torch.randn(7, columns, generator=torch.Generator().manual_seed(bits))
    weight[3] = 0.25
    rounded = grid.rounded(weight)
    assert rounded.shape == weight.shape
    for begin in range(0, columns, grid.group):
        ours, theirs = rounded[:, begin : begin + grid.group], weight[:, begin : begin + grid.group]
        assert ((ours - theirs).abs() <= grid.step(theirs) / 2 * (1 + 1e-5) + 1e-7).all()
        assert max(len(row.unique()) for row in ours) <= min(grid.levels, 2**bits)
    assert torch.allclose(grid.rounded(rounded), rounded, atol=1e-6)  # what is rounded stays


def test_the_targets_own_draft(tmp_path):
    with rounded_draft(DEMO_TARGET, 4) as directory:
        assert directory.name == "target-4-bit"
        assert {file.name for file in directory.iterdir()} == {file.name for file in DEMO_TARGET.iterdir()}
        assert (directory / "config.json").read_bytes() == (DEMO_TARGET / "config.json").read_bytes()
        ours, theirs = (load_file(place / "model.safetensors") for place in (directory, DEMO_TARGET))
        assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
            name: (t.shape, t.dtype) for name, t in theirs.items()
        }
        changed = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
        assert changed == {name for name, tensor in theirs.items() if ".layers." in name and tensor.dim() == 2}
        assert all((ours[n] - theirs[n]).float().norm() < 0.2 * theirs[n].float().norm() for n in changed)
    assert not directory.parent.exists()


def test_own_draft_from_the_command_line(tmp_path):
    arguments = (*QUICK, "--model", str(checkpoint("llama")), "--draft-bits", "4", "--contexts", "12")
    grid = ("--methods", "chain,sequoia", "--sizes", "4", "--temperatures", "0.8", "--top-ps", "1")
    assert compare_methods.main([*arguments, *grid, "--json", str(tmp_path / "own.jsonl")]) == 0
    (run,) = lines(tmp_path / "own.jsonl", "run")
    assert run["setup"]["draft_bits"] == 4 and len(lines(tmp_path / "own.jsonl")) == 2


def test_same_contexts_from_the_command_line(known_pair, tmp_path, capsys):
    file = tmp_path / "cells.jsonl"
    setup = (*known_pair, *QUICK, "--same-contexts", "--sizes", "6", "--top-ps", "1", "--contexts", "6")
    run = [*setup, "--resume", str(file)]
    assert compare_methods.main([*run, "--temperatures", "0,0.8", "--methods", "sequoia,sequoia-damped,adaptive"]) == 0
    written = capsys.readouterr().out
    assert "starts of the passes in which `sequoia` writes" in written and "Milliseconds" not in written
    assert written.count("| sequoia | 1.000 (1.000 to 1.000) |") == 2 and "–" not in written
    found = lines(file)
    assert len(found) == 3 * 2 and {c["driver"] for c in found} == {"sequoia"}

    assert compare_methods.main([*run, "--temperatures", "0.8", "--methods", "sequoia-traversal,topk"]) == 0
    again = lines(file)
    assert again[: len(found)] == found and len(again) == 3 * 2 + 2
    contexts: dict[float, set] = {0.0: set(), 0.8: set()}
    for record in again:
        contexts[record["temperature"]].add(tuple((reply[0], reply[1], reply[3]) for reply in record["replies"]))
        assert all(reply[3] <= reply[2] <= 6 * reply[3] for reply in record["replies"])
    assert all(len(same) == 1 for same in contexts.values())  # those of a later run are the same ones


@pytest.mark.parametrize(("driver", "known"), [("sequoia", Acceptance.prior()), ("adaptive", Acceptance.empty())])
def test_the_driver_writes_what_it_writes_alone_and_yields_as_much(driver, known):
    """The runtime knows nothing of the pair either, so its static tree is that of the prior."""
    options = Options(model=checkpoint("llama"), draft=perturbed(checkpoint("llama"), 0.05), device="cpu")
    pair, enough = Pair(options, [[5, 17, 3, 88, 41, 9] * 3], 32), 32  # the prompt repeats itself
    with pair.models(8, 2) as models:
        compared = [cell(name, 8, 2, WARM, driver) for name in ("sequoia-traversal", driver)]
        side_by_side = SideBySide.of(pair, models, known, compared)
        passes = list(up_to(enough, side_by_side.passes(pair.prompts[0], seed=0)))
    with pair.runtime(driver, 8, 2) as runtime:
        alone = list(up_to(enough, pair.steps(runtime, WARM)(0, 0)))
    assert [made.token_ids for made in passes] == [step.token_ids for step in alone] and len(passes) > 9
    surprises = np.array([len(made.token_ids) - made.yields[driver] for made in passes])
    assert (surprises**2).mean() > 0.02
    assert abs(surprises.sum()) < 3 * math.sqrt((surprises**2).sum())


@pytest.mark.parametrize("driver", ["sequoia", "adaptive"])
def test_what_counts_ends_with_the_text(driver):
    model, ends = checkpoint("llama"), frozenset(range(0, 96, 6))
    pair = Pair(Options(model=model, draft=perturbed(model, 0.05), device="cpu"), [[5, 17, 3, 88, 41, 9]], 32)
    with pair.models(8, 3) as models:
        side_by_side = SideBySide.of(pair, models, Acceptance.prior(), [cell(driver, 8, 3, WARM, driver)])
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
    run = [*pair, *QUICK, "--same-contexts", "--contexts", "6", "--sizes", "4", "--methods", "sequoia"]
    assert compare_methods.main([*run, "--near-end", "8", "--temperatures", "0.8", "--top-ps", "1"]) == 2
    assert "no text ended" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [WARM, GREEDY])
@pytest.mark.parametrize("contexts", [0, 200])
def test_the_damped_tree_is_the_one_that_the_runtime_makes(setting, contexts):
    options = Options(model=checkpoint("llama"), draft=perturbed(checkpoint("llama"), 0.05), device="cpu")
    pair, sampling = Pair(options, [[5, 17, 3]], 8), Sampling(**vars(setting))
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
    complete = Pair(Options(model=target, draft=draft, device="cpu"), [[5, 6, 7]], reply_tokens=4)
    tables = complete.acceptance([WARM, GREEDY], contexts=4, seed=0, note=notes.append)
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
        (("--draft-bits", "7"), "none of 2, 3, 4"),
        (("--tree", "chain"), "--methods"),
        (("--draft", "here", "--draft-bits", "4"), "not both"),
        (("--methods", "sequoia-damped"), "with --same-contexts only"),
        (("--same-contexts", "--methods", "sequoia,auto"), "measured times"),
        (("--same-contexts", "--driver", "plain"), "drafts no tree"),
        (("--driver", "chain"), "goes with --same-contexts"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_compared_is_told_in_a_line(capsys):
    assert compare_methods.main(["--model", str(checkpoint("llama")), "--quiet"]) == 2
    assert "--draft-bits 4" in capsys.readouterr().err
