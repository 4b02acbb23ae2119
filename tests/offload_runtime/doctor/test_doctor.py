"""The doctor: every probe answers or says what it failed of, on any machine, and nothing tells who or where one is."""

import json
import platform
import subprocess
import sys

import pytest

from offload_runtime.doctor import command, predictions, probes
from offload_runtime.doctor.redaction import redacted
from offload_runtime.model import pass_overhead
from scheduler.errors import MachineError
from scheduler.streaming import bandwidth
from tests.plan_samples import LLAMA3_8B, LLAMA3_70B, cpu, gpu
from tests.pretend_cuda import pretend_cuda

SECTIONS = ["machine", "versions", "GPU", "kernels", "pinning", "disk", "speed", "predictions"]
FIGURES = {"memory_bandwidth": 2e10, "product_bandwidth": 2e10, "flops": 3e11}
GIB = 1 << 30


@pytest.fixture
def quick(monkeypatch):
    """What is measured of the processor elsewhere is known here."""
    monkeypatch.setattr(bandwidth, "measure_speed", lambda device, dtype: FIGURES)
    costs = {"pass_seconds": 0.001, "layer_seconds": 0.0001}
    monkeypatch.setattr(pass_overhead, "measure_passes", lambda device, dtype: costs)
    monkeypatch.setattr(bandwidth, "remember", lambda *arguments: None)
    monkeypatch.setattr(bandwidth, "recall", lambda *arguments: None)
    monkeypatch.setattr(probes, "DISK_SECONDS", 0.01)


def report(capsys, *arguments: str) -> dict:
    assert command.run(["--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_machine_without_a_gpu_is_described_whole(quick, capsys):
    found = report(capsys, "--device", "cpu")
    assert list(found) == SECTIONS and "failed" not in json.dumps(found)
    assert found["versions"]["Python"] == platform.python_version()
    assert found["speed"]["tera_flops"] == pytest.approx(0.3) and found["disk"]["read_bytes_per_second"] > 0
    models = [(each["model"], each["weights"]) for each in found["predictions"]]
    assert len(models) == len(set(models)) == 6


def test_a_gpu_is_described_with_its_kernels_and_what_can_be_pinned(capsys, monkeypatch):
    monkeypatch.setattr(probes, "DISK_SECONDS", 0.01)
    monkeypatch.setattr(probes, "MOST_PINNED", 2 * probes.PINNED_STEP)
    with pretend_cuda(dtype="bfloat16"):
        found = report(capsys, "--device", "cuda")
    assert "failed" not in json.dumps(found)
    assert found["GPU"]["capability"] == "8.9" and found["GPU"]["bfloat16"] is True
    assert found["pinning"]["granted_bytes"] == 2 * probes.PINNED_STEP and not found["pinning"]["refused"]
    assert "plain torch" in found["kernels"]["dequantization"]
    assert found["kernels"]["experts of up to 800 rows"] == "every expert"
    assert found["predictions"][0]["place"] == "resident"


def test_text_and_json_say_the_same(quick, capsys):
    assert command.run(["--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{section}\n" in text for section in SECTIONS)
    assert "memory bandwidth" in text and "20 GB/s" in text and "llama-3-70b, int4" in text


@pytest.mark.parametrize("broken", ["_locked_limit", "measure_read_bandwidth", "read_machine", "torch_build"])
def test_a_probe_that_fails_says_so_in_its_line(broken, quick, capsys, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(f"cannot read /home/somebody/secret/file nor {'GPU-12345678-1234-1234-1234-123456789abc'}\nmore")

    monkeypatch.setattr(probes, broken, fail)
    found = report(capsys, "--device", "cpu")
    assert list(found) == SECTIONS
    failed = [name for name, section in found.items() if isinstance(section, dict) and "failed" in section]
    assert len(failed) == 1 and found[failed[0]] == {"failed": "OSError: cannot read (path) nor (UUID)"}
    assert command.run(["--device", "cpu"]) == 0
    assert "failed  OSError: cannot read (path)" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_told_by_every_probe_of_it(quick, capsys, monkeypatch):
    def missing(device: str) -> None:
        raise MachineError("no NVIDIA GPU found\n  --device cpu")

    monkeypatch.setattr("offload_runtime.planning.planning.machine_for", missing)
    found = report(capsys, "--device", "cuda")
    for section in ("GPU", "kernels", "speed", "predictions"):
        assert found[section] == {"failed": "MachineError: no NVIDIA GPU found"}
    assert found["machine"]["cores"] and found["disk"]["read_bytes_per_second"] > 0


def test_nothing_tells_who_or_where_somebody_is(quick, capsys, monkeypatch, tmp_path):
    home = tmp_path / "Ada Lovelace"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "adalove")
    monkeypatch.setattr(platform, "node", lambda: "analytical.engine.example")
    monkeypatch.setattr(platform, "release", lambda: f"6.1 of adalove on analytical in {home}/models at /srv/ada/x")
    found = report(capsys, "--device", "cpu")
    assert "6.1 of (name) on (name) in (path) at (path)" in found["machine"]["system"]
    for secret in ("adalove", "analytical", "Lovelace", "/srv", str(tmp_path)):
        assert secret not in json.dumps(found)


def test_what_tells_nothing_stays():
    for text in ("PCIe 4.0 x16", "2.13.0+cu130", "tokens/s", "plain torch: Triton lacks Python.h", "yes/no"):
        assert redacted({"a": [text, 3, None]}) == {"a": [text, 3, None]}


def test_shapes_are_those_of_the_published_models():
    stored = {"llama-3-70b": 141_107_412_992, "llama-3-8b": 16_060_522_496}  # as their indexes state
    for shape, known in (("llama-3-70b", LLAMA3_70B), ("llama-3-8b", LLAMA3_8B)):
        spec = predictions.spec_of(shape, None, "bfloat16")
        assert len(spec.layers) == len(known.layers) and spec.kv_bytes_per_token == known.kv_bytes_per_token
        for ours, theirs in (
            (spec.layers[0].nbytes, known.layers[0].nbytes),
            (spec.embeddings_and_head_bytes, known.embeddings_and_head_bytes),
        ):
            assert ours == pytest.approx(theirs, rel=1e-5)
        assert spec.disk_bytes == stored[shape]
    packed = predictions.spec_of("llama-3-70b", "int4", "bfloat16")
    assert packed.is_packed and packed.layers[0].nbytes < 0.3 * LLAMA3_70B.layers[0].nbytes


def test_predictions_say_where_a_model_lives():
    known = {"flops": 1e14, "memory_bandwidth": 9e11, "pass_seconds": 1e-3, "layer_seconds": 1e-4}
    machine = bandwidth.with_measured_speed(gpu(24 * GIB, 64 * GIB), known)
    told = {(each["model"], each["weights"]): each for each in predictions.predictions(machine, "bfloat16")}
    assert told["llama-3-8b", "bfloat16"]["place"] == "resident"
    assert told["llama-3-70b", "int4"]["place"].startswith("streams")
    streamed = told["llama-3-70b", "int4"]
    assert streamed["tree_tokens_per_second"] > 1.5 * streamed["plain_tokens_per_second"]
    assert {each["place"] for each in predictions.predictions(cpu(2 * GIB), "float32")} == {"does not fit"}


def test_it_starts_as_a_command_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "offload_runtime.doctor", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "--json" in done.stdout
    assert "torch" not in done.stderr
