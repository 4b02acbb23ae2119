"""The latency benchmark: what it writes and measures, that it tidies up, and how it fails."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.sizes import GIB
from offload_runtime.generation.decode import Step
from offload_runtime.measure_acceptance.prompts import read_prompts
from scheduler.plan.pass_cost import PassCost
from scheduler.plan.plan import Limits, Tier, make_plan
from tests.plan_samples import LLAMA2_70B, gpu
from tests.samples.tiny_models import checkpoint, perturbed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_latency  # noqa: E402
from latency import measure  # noqa: E402
from latency.measure import predict_passes  # noqa: E402
from toolkit.link import Bandwidths, best  # noqa: E402
from toolkit.replies import TimedReply  # noqa: E402

QUICK = ["--repeats", "1", "--new-tokens", "4", "--prompt-tokens", "8", "--quiet"]
FIGURES = {
    "seconds_per_token_p50", "seconds_per_token_p95", "seconds_to_first_token", "tokens_per_pass", "pass_seconds_p50",
    "predicted_pass_seconds", "prediction_ratio",
    "draft_seconds", "streamed_bytes", "bytes_per_second", "link_share", "limit_ratio", "peak_device_bytes",
    "outputs", "plan",
}  # fmt: skip


def run(*arguments: str) -> tuple[int, list[dict]]:
    """Exit code and JSON lines of a run."""
    lines = Path(arguments[arguments.index("--json") + 1])
    code = benchmark_latency.main([*QUICK, *arguments])
    return code, [json.loads(line) for line in lines.read_text().splitlines()]


def by_kind(records: list[dict], kind: str) -> list[dict]:
    return [record for record in records if record["record"] == kind]


def test_streamed_shape_with_shared_layers(tmp_path, capsys):
    code, records = run(
        *("--shape", "small", "--distinct-layers", "2", "--dtype", "float32", "--device-memory", "64MiB"),
        *("--work-dir", str(tmp_path / "work"), "--json", str(tmp_path / "lines")),
    )
    assert code == 0
    (settings,), (plain,) = by_kind(records, "run"), by_kind(records, "mode")
    assert (settings["layers"], settings["share_layers"]) == (8, True)
    assert {"torch", "transformers", "python", "device_name", "torch_threads"} <= settings.keys()
    assert plain.keys() >= FIGURES
    streamed = plain["plan"]["tiers"].count("disk")
    assert streamed >= 1 and plain["plan"]["slots"] >= 2
    assert plain["streamed_bytes"] == plain["plan"]["streamed_bytes"] > 0
    assert plain["link_bytes_per_second"]["disk"] > 0 and plain["compute_seconds"] > 0
    limit = max(plain["link_seconds"], plain["compute_seconds"])
    assert plain["limit_ratio"] == pytest.approx(plain["pass_seconds_p50"] / limit)
    assert plain["link_share"] == pytest.approx(plain["bytes_per_second"] / plain["link_bytes_per_second"]["disk"])
    assert plain["tokens_per_pass"] == 1 and plain["draft_seconds"] is None
    assert plain["predicted_pass_seconds"] > 0 and plain["prediction_ratio"] > 0
    assert plain["peak_device_bytes"] <= 64 << 20
    assert [len(reply["token_ids"]) for reply in by_kind(records, "reply")] == [4, 4]
    shown = capsys.readouterr().out
    assert "8 layers share 2" in shown and "x the larger of the two" in shown
    assert not list((tmp_path / "work").iterdir())


def test_both_modes_of_a_pair_write_the_same(tmp_path, capsys):
    model = checkpoint("llama")
    pair = ["--model", str(model), "--draft", str(perturbed(model, 0.2)), "--tree-size", "6"]
    code, records = run(*pair, "--json", str(tmp_path / "lines"))
    assert code == 0
    plain, tree = by_kind(records, "mode")
    assert (plain["mode"], tree["mode"]) == ("plain", "tree")
    assert (plain["outputs"], tree["outputs"]) == ("reference", "equal")
    assert plain["plan"]["draft"] is None and tree["plan"]["draft"]
    assert tree["draft_seconds"] > 0 and tree["streamed_bytes"] is None
    replies = by_kind(records, "reply")
    tokens = {mode: [reply["token_ids"] for reply in replies if reply["mode"] == mode] for mode in ("plain", "tree")}
    assert tokens["plain"] == tokens["tree"]
    shown = capsys.readouterr().out
    assert "| plain |" in shown and "| tree |" in shown and "outputs: equal" in shown and "Nothing streams" in shown


def test_json_on_stdout_stands_alone(tmp_path, capsys):
    code = benchmark_latency.main([*QUICK, "--shape", "tiny", "--work-dir", str(tmp_path), "--json", "-"])
    shown = capsys.readouterr()
    assert code == 0
    assert [json.loads(line)["record"] for line in shown.out.splitlines()] == ["run", "reply", "reply", "mode"]
    assert "tok/pass" in shown.err


@pytest.mark.parametrize("failure, code", [(KeyboardInterrupt, 130), (SystemExit, None), (RuntimeError, None)])
def test_made_up_weights_vanish_whatever_happens(tmp_path, monkeypatch, failure, code):
    def fail(*arguments):
        assert list(tmp_path.rglob("model.safetensors"))
        raise failure

    monkeypatch.setattr(measure, "measure_mode", fail)
    arguments = [*QUICK, "--shape", "tiny", "--work-dir", str(tmp_path)]
    if code is None:
        with pytest.raises(failure):
            benchmark_latency.main(arguments)
    else:
        assert benchmark_latency.main(arguments) == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--shape", "no-such-shape"], 2, "llama-2-70b"),
        (["--model", "no-such-directory"], 3, "no-such-directory"),
        (["--shape", "tiny", "--device-memory", "100KiB"], 4, "--device-memory"),
        (["--shape", "tiny", "--work-dir", __file__], 1, "File exists"),
        (["--shape", "tiny", "--work-dir", f"{__file__}/x"], 1, "Not a directory"),
        (["--shape", "tiny", "--prompts", "no-such-file"], 2, "no tokenizer"),
        (["--shape", "tiny", "--json", "no/such/file"], 1, "no/such/file"),
    ],
)
def test_mistakes_end_with_a_message_and_a_code(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert benchmark_latency.main([*QUICK, *arguments]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shape", "tiny", "--model", "x"],
        ["--distinct-layers", "2"],
        ["--shape", "tiny", "--draft", "x"],
        ["--new-tokens", "1"],
        ["--repeats", "0"],
    ],
)
def test_options_that_do_not_go_together(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        benchmark_latency.main(arguments)
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts"
    file.write_text("one\ntwo\n")
    assert read_prompts(file) == ["one", "two"]
    file.write_text("one\nstill one\n\n\ntwo\n")
    assert read_prompts(file) == ["one\nstill one", "two"]


def test_the_larger_bandwidth_counts():
    assert best([Bandwidths(disk=1.0), Bandwidths(disk=3.0, pinned=2.0), Bandwidths()]) == Bandwidths(
        disk=3.0, pinned=2.0
    )


def test_every_timed_pass_is_predicted_at_its_own_rows_and_context():
    plan = replace(
        make_plan(LLAMA2_70B, None, gpu(24 * GIB), Limits(context_length=128)),
        machine=replace(gpu(24 * GIB), flops=1e14, memory_bandwidth=1e12, link_bandwidth=2e10, disk_bandwidth=2e9),
    )
    steps = [step(4, 5), step(0, 1, draft_seconds=0.5), step(4000, 3), step(0, 1)]
    predicted = predict_passes(plan, LLAMA2_70B, [TimedReply(tuple(steps), prompt_tokens=100)])
    cost = PassCost(LLAMA2_70B, plan.tiers, plan.slots, plan.machine)
    expected = [cost.seconds(1, 1, 104, gap=0.5), cost.seconds(4001, 4001, 105), cost.seconds(1, 1, 108)]
    assert predicted == tuple(seconds.total for seconds in expected) and predicted[1] > predicted[2] > predicted[0]
    blind = replace(plan, machine=replace(plan.machine, link_bandwidth=None))
    assert predict_passes(blind, LLAMA2_70B, [TimedReply(tuple(steps), prompt_tokens=100)]) is None


def step(drafted: int, tokens: int, draft_seconds: float = 0.0) -> Step:
    return Step([7] * tokens, drafted, tokens - 1, draft_seconds, target_seconds=1.0, streamed_bytes=0)


def test_layers_that_share_their_bytes_share_host_memory():
    """A 70B shape streams from the memory of a 16 GB host when its layers repeat two, and as many bytes a pass."""
    layers = tuple(replace(layer, stored_at=(Path("x"), index % 2)) for index, layer in enumerate(LLAMA2_70B.layers))
    machine, limits = gpu(24 * GIB, host=16 * GIB), Limits(context_length=128)
    alone = make_plan(LLAMA2_70B, None, machine, limits)
    shared = make_plan(replace(LLAMA2_70B, layers=layers), None, machine, limits)
    assert Tier.DISK in alone.tiers and Tier.DISK not in shared.tiers
    assert shared.streamed_bytes == alone.streamed_bytes
    assert shared.host_bytes < 6 * GIB
