"""Jobs on a Ray cluster: two workers on this processor, killed and gone on with."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.batch import main
from offload_runtime.options.run_options import DEMO_TARGET

ROOT = Path(__file__).resolve().parents[3]
LINES = [{"prompt": f"def f{number}(", "max_new_tokens": 40 + number % 7} for number in range(48)]
OPTIONS = ("--device", "cpu", "--dtype", "float32", "--temperature", "0", "--ray", "local")

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'sequoia-offload[ray]'")


@contextmanager
def job(prompts: Path, replies: Path, errors: Path) -> Iterator[psutil.Popen]:
    """A job with two workers. Whatever of it and its cluster is left in the end is ended."""
    files = ("--input", str(prompts), "--output", str(replies))
    command = [sys.executable, "-m", "offload_runtime.batch", *OPTIONS, "--ray-workers", "2", *files]
    with errors.open("wb") as file, psutil.Popen(command, cwd=ROOT, stderr=file) as process:
        started: list[psutil.Process] = []
        process.started = started
        try:
            yield process
        finally:
            for one in [process, *started]:
                with suppress(psutil.NoSuchProcess):  # psutil compares when they began, so these are still the same
                    one.kill()
            psutil.wait_procs(started, timeout=30)


def workers(process: psutil.Popen) -> list[psutil.Process]:
    """The processes that run models; notes all that belong to the job."""
    found = process.children(recursive=True)
    process.started.extend(found)
    return [one for one in found if one.name().startswith("ray::MapWorker")]


def answered(replies: Path) -> list[int]:
    return [json.loads(line)["index"] for line in replies.read_bytes().split(b"\n")[:-1]] if replies.exists() else []


def two_workers(replies: Path, count: int, process: psutil.Popen, errors: Path) -> list[psutil.Process]:
    """Both workers, once they run and so many lines are answered."""
    while len(answered(replies)) < count or len(workers(process)) < 2:
        assert process.poll() is None, errors.read_text()
        time.sleep(0.02)
    return workers(process)


@needs_ray
@pytest.mark.timeout(1200)
def test_two_workers_complete_a_job_whichever_process_is_killed(tmp_path: Path) -> None:
    prompts, replies, errors = (tmp_path / name for name in ("prompts.jsonl", "replies.jsonl", "errors"))
    prompts.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "oops\n")
    with job(prompts, replies, errors) as process:
        two_workers(replies, 3, process, errors)
        process.kill()
    before = len(answered(replies))
    assert 3 <= before < len(LINES)
    with job(prompts, replies, errors) as process:
        two_workers(replies, before + 3, process, errors)[0].kill()
        assert process.wait() == 0, errors.read_text()
    assert f"{len(LINES) + 1} of {len(LINES) + 1} lines (100%) · 1 error" in errors.read_text()
    assert sorted(answered(replies)) == [*range(len(LINES) + 1)]
    with OffloadRuntime.from_pretrained(DEMO_TARGET, device="cpu", dtype="float32") as runtime:
        for answer in map(json.loads, replies.read_bytes().splitlines()):
            if answer["index"] < len(LINES):
                line = LINES[answer["index"]]
                reply = runtime.generate(line["prompt"], max_new_tokens=line["max_new_tokens"], temperature=0.0)
                assert answer["text"] == reply.text


@needs_ray
@pytest.mark.timeout(600)
def test_what_a_worker_cannot_do_ends_the_job_in_words(tmp_path: Path) -> None:
    """The model does not fit: the worker says so, and nothing is written."""
    (tmp_path / "in").write_text('{"prompt": "def f("}\n')
    files = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    command = [sys.executable, "-m", "offload_runtime.batch", *OPTIONS, *files, "--context-length", "400000000"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: " in ended.stderr and "context" in ended.stderr.partition("error: ")[2]
    assert (tmp_path / "out").read_bytes() == b""


@needs_ray
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_text('{"prompt": "def f("}\n')
    files = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert main([*files, "--ray", "127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert "error: --ray 127.0.0.1:1: cannot be used" in said and "ray start --head" in said


def test_ray_that_is_missing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in").write_text('{"prompt": "def f("}\n')
    files = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert main([*files, "--ray", "local"]) == 2
    assert "pip install 'sequoia-offload[ray]'" in capsys.readouterr().err


def test_workers_are_those_of_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--input", "a", "--output", "b", "--ray-workers", "2"])
    assert "add --ray ADDRESS" in capsys.readouterr().err
