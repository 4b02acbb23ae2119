"""The measurement of acceptance, end to end on tiny models: its figures, where they are kept, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from offload_runtime import measure_acceptance
from offload_runtime.measure_acceptance import measure
from offload_runtime.measure_acceptance.options import SETTINGS, parse_arguments, settings
from offload_runtime.measure_acceptance.prompts import GENERAL, STANDARD_LIBRARY, prompts_for
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare
from offload_runtime.speculation import acceptance_store as store
from offload_runtime.speculation.acceptance_store import Setting
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.acceptance.observe import observe_greedy
from tests.samples.mtp_models import save_known
from tests.samples.tiny_models import checkpoint, perturbed, reference, weights_bytes

ROOT = Path(__file__).resolve().parents[3]

QUICK = [
    *("--device", "cpu", "--context-length", "64", "--tree-size", "4", "--tree-depth", "2"),
    *("--max-new-tokens", "6", "--positions", "30", "--quiet"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


def target():
    return checkpoint("llama")


def draft():
    return perturbed(target(), 0.1)


def run(*arguments, model=None, drafter=None):
    return measure_acceptance.main(
        [*QUICK, "--model", str(model or target()), "--draft", str(drafter or draft()), *arguments]
    )


def figures(capsys, *arguments, **models):
    """The settings' figures of a run."""
    assert run("--json", *arguments, **models) == 0
    return json.loads(capsys.readouterr().out)["settings"]


def test_all_usual_settings_end_in_the_cache(capsys):
    assert run() == 0
    shown = capsys.readouterr()
    assert "drafting for" in shown.out and "by m" in shown.out and shown.err == ""
    assert len([line for line in shown.out.splitlines() if line.lstrip().startswith(("0 ", "0.6 ", "1 "))]) == 10
    known = store.load(target(), draft())
    assert tuple(known.measurements) == SETTINGS and known.target == target().name
    for setting, one in known.measurements.items():
        table = one.acceptance
        # 4 made-up prompts, 6 tokens in reply to each; greedy ones are not asked twice
        assert table.positions == (24 if setting.temperature == 0 else 30)
        assert np.all(table.counts.sum(0) == table.positions)
        assert table.scale_positions == (24 if setting.temperature == 0 else 0)
        assert 0 < one.agreement <= 1 and 0 < table.positional()[0] <= 1


def test_a_second_run_adds_its_settings(capsys):
    assert run("--temperature", "0") == 0
    assert run("--temperature", "0.9", "--top-p", "1", "0.8") == 0
    measured = store.load(target(), draft()).measurements
    expected = [Setting(temperature=0.9, top_p=p) for p in (1.0, 0.8)]
    assert list(measured) == [Setting(temperature=0.0), *expected]


def test_greedy_figures_are_those_of_transformers(capsys):
    (found,) = figures(capsys, "--temperature", "0")
    total, agreements = Acceptance.empty(), 0
    for prompt in prompts_for(target(), 96, None, False, 0):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            ids = reference(target()).generate(ids, max_new_tokens=6, do_sample=False)
            distributions = [
                reference(model)(ids[:, :-1]).logits[0, len(prompt) - 1 :] for model in (target(), draft())
            ]
        total += observe_greedy(*distributions)
        agreements += int((distributions[0].argmax(-1) == distributions[1].argmax(-1)).sum())
    assert found["acceptance"] == pytest.approx(total.positional().tolist())
    assert found["agreement"] == agreements / 24 and found["contexts"] == 24
    assert found["draft_scale"] == total.scale()
    assert sum(entry["contexts"] for entry in found["calibration"]) == 24


def test_a_draft_that_is_the_target_is_always_accepted(capsys):
    for found in figures(capsys, "--temperature", "0", "0.8", drafter=target()):
        assert found["acceptance"][0] == pytest.approx(1, abs=1e-5) and found["agreement"] == 1


def test_the_models_own_head_is_measured_and_the_plan_finds_it(capsys, tmp_path):
    """A head that knows the next token from the token before: always right, once the text goes round the cycle."""
    step = torch.eye(32).roll(1, dims=0)
    model = save_known(tmp_path, 9 * step, torch.zeros_like(step), step)
    options = Options(model, "mtp", device="cpu", context_length=64)
    assert not prepare(options).acceptance.measured
    for found in figures(capsys, "--temperature", "0", "0.6", model=model, drafter="mtp"):
        assert found["acceptance"][0] > 0.8, "the first token after a prompt does not go round"
    known = prepare(options).acceptance
    assert known.measured and known.by_child[0] > 0.6


def test_a_streamed_target_gives_the_same_figures(capsys):
    whole = figures(capsys, "--temperature", "0.8")
    cap = prepare(
        Options(target(), draft(), device="cpu", context_length=64, tree_size=4, tree_depth=2)
    ).plan.device_bytes
    few = str(cap - weights_bytes(target()) // 4)
    streamed = figures(capsys, "--temperature", "0.8", "--device-memory", few)
    for one, other in zip(whole, streamed):
        assert one["acceptance"] == pytest.approx(other["acceptance"], abs=1e-5)


def test_pieces_of_a_reply_are_one_reply(capsys):
    """However few logits the plan has room for at once."""
    small, large = (figures(capsys, "--temperature", "0", "--tree-size", size) for size in ("2", "40"))
    assert small == large


@pytest.mark.parametrize("vocabulary", [80, 112])
def test_a_draft_with_another_number_of_embedding_rows(capsys, vocabulary):
    other = checkpoint("llama", vocab_size=vocabulary)
    for found in figures(capsys, "--temperature", "0", "0.8", drafter=other):
        assert 0 <= found["acceptance"][0] <= 1 and np.all(np.isfinite(found["acceptance"]))


def test_results_are_kept_where_asked(capsys, tmp_path):
    file = tmp_path / "figures.json"
    assert run("--temperature", "0", "--output", str(file)) == 0
    assert store.load(target(), draft()) is None
    beside = draft() / store.ACCEPTANCE_FILE
    try:
        assert run("--temperature", "0", "--output", "beside") == 0
        assert beside.read_text() == file.read_text()
        assert list(store.load(target(), draft()).measurements) == [Setting(temperature=0.0)]
    finally:
        beside.unlink()


def test_progress_and_the_place_are_shown_on_stderr(capsys):
    arguments = [argument for argument in QUICK if argument != "--quiet"]
    models = ["--model", str(target()), "--draft", str(draft())]
    assert measure_acceptance.main([*arguments, *models, "--temperature", "0.7", "--top-p", "0.9"]) == 0
    shown = capsys.readouterr().err
    assert "temperature 0.7, top-p 0.9: 30/30 tokens written" in shown
    assert "replies measured" in shown and f"kept in {store.cache_file(target(), draft())}" in shown


def test_replies_to_one_prompt_are_one_cluster():
    one = measure.Measured(Setting(), (Acceptance.from_positional([0.5], 10), Acceptance.empty()), 0.5)
    assert one.total.positions == pytest.approx(10) and one.measurement.one_minus_tv == pytest.approx(0.5)
    greedy = measure.Measured(Setting(temperature=0.0), one.prompts, 0.5)
    assert greedy.measurement.one_minus_tv is None


def test_settings_asked_for():
    assert settings(parse_arguments([])) == list(SETTINGS)
    both = settings(parse_arguments(["--temperature", "0", "1", "--top-p", "0.5", "0.9"]))
    assert both == [Setting(temperature=0.0), Setting(1.0, top_p=0.5), Setting(1.0, top_p=0.9)]  # top-p is nothing at 0
    assert [s.temperature for s in settings(parse_arguments(["--top-p", "0.5"]))] == [0, 0.6, 1]


def test_prompts_are_distinct():
    for prompts in (GENERAL, STANDARD_LIBRARY):
        assert len(set(prompts)) == len(prompts) >= 24


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--draft", "none"], 2, "--draft DIR"),
        (["--tree", "none"], 2, "--draft DIR"),
        (["--model", "no-such-directory", "--draft", "x"], 3, "no-such-directory"),
        (["--output", "no/such/file.json"], 2, "no/such"),
        (["--device-memory", "1KiB"], 4, "--device-memory"),
        (["--prompts", "no-such-file"], 2, "no-such-file"),
    ],
)
def test_mistakes_end_with_a_message_and_a_code(capsys, arguments, code, message):
    assert measure_acceptance.main([*QUICK, *arguments]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err and "Traceback" not in shown.err


def test_prompts_of_text_need_a_tokenizer(capsys, tmp_path):
    (tmp_path / "prompts").write_text("Why?")
    assert run("--prompts", str(tmp_path / "prompts")) == 2
    assert "no tokenizer" in capsys.readouterr().err


def test_figures_are_shown_where_they_cannot_be_kept(capsys, monkeypatch):
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", __file__)
    assert run("--temperature", "0") == 2
    shown = capsys.readouterr()
    assert "drafting for" in shown.out and "SEQUOIA_OFFLOAD_CACHE" in shown.err


def test_ctrl_c_ends_it_with_130(capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupt)
    assert run() == 130


@pytest.mark.parametrize("line", ["--temperature -1", "--top-p 0", "--positions 0", "--output there", "--seed x", "x"])
def test_a_bad_value_exits_with_2(capsys, line):
    with pytest.raises(SystemExit) as stopped:
        measure_acceptance.main(line.split())
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "from offload_runtime import measure_acceptance\n"
        "try: measure_acceptance.main(['--help'])\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--temperature" in result.stdout


def test_an_interrupted_measurement_goes_on_from_its_replies(capsys, monkeypatch):
    expected = figures(capsys)
    generate, asked = measure.OffloadRuntime.generate, []

    def counted(runtime, prompt, **arguments):
        asked.append(arguments)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return generate(runtime, prompt, **arguments)

    monkeypatch.setattr(measure.OffloadRuntime, "generate", counted)
    assert run() == 130
    [kept] = store.cache_file(target(), draft()).parent.glob("*.replies")
    assert len(kept.read_text().splitlines()) == 6  # beside the one that the speed was measured with
    kept.write_text(kept.read_text() + '{"question": "torn')
    before = len(asked)
    again = figures(capsys)
    assert again == expected and not kept.exists()
    asked_again = len(asked) - before
    assert asked_again == 1 + 4 + 4 * 5 - 6


def test_the_cost_is_said_before_and_a_quick_one_is_bounded():
    notes = []
    settings = [Setting(temperature=0.0), Setting(temperature=1.0)]
    workload = measure.Workload(["a", "b"], 100, 3000, 0)
    assert measure.within_minutes(workload, settings, 2.0, notes.append) == workload
    assert notes[0].startswith("2 settings of 3000 tokens at 2 tokens/s: about 27 min; --quick")  # greedy: 200
    quick = measure.within_minutes(measure.Workload(["a"], 100, 3000, 0, 5), settings, 2.0, notes.append)
    assert quick.positions == 300 and "about 3 min" in notes[1]
    assert parse_arguments(["--quick"]).quick == 5 and parse_arguments(["--quick", "9"]).quick == 9
    assert parse_arguments([]).quick is None
