"""Whole jobs: killed at any moment and gone on with, stopped in order, and what is said of them."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.batch import command, main
from offload_runtime.errors import ModelFilesError
from offload_runtime.options.run_options import DEMO_TARGET
from tests.fakes.batch_process import BatchProcesses, Signal
from tests.fakes.counting_runtime import CountingRuntime

ROOT = Path(__file__).resolve().parents[3]
QUESTIONS = [
    *(
        {"messages": [{"role": "user", "content": f"What is the module `{name}` for?"}]}
        for name in ("os", "re", "json")
    ),
    *({"prompt": f"def {name}(", "id": name} for name in ("walk", "dedent", "copy", "größe 😀")),
]


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl"


def write(path: Path, *lines: Any) -> None:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def files(paths: tuple[Path, Path]) -> list[str]:
    return ["--input", str(paths[0]), "--output", str(paths[1])]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingRuntime:
    """What the command loads instead of a model."""
    runtime = CountingRuntime()
    monkeypatch.setattr(command, "load_runtime", lambda options, arguments, note: runtime)
    return runtime


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchProcesses]:
    with BatchProcesses(tmp_path_factory.mktemp("jobs") / "errors") as processes:
        yield processes


def test_a_job_that_is_killed_again_and_again_is_complete_and_free_of_doubles(
    processes: BatchProcesses, paths: tuple[Path, Path]
) -> None:
    """Every greedy reply is the one of `generate`; at least ten kills, some in every part of the job."""
    lines = [{**question, "max_new_tokens": 6 + index} for index, question in enumerate(QUESTIONS * 4)]
    write(paths[0], *lines)
    options = ["--device", "cpu", "--dtype", "float32", "--temperature", "0", "--quiet", *files(paths)]
    dice = random.Random(14)
    kills, sizes, code = 0, [0], -signal.SIGKILL
    while code:
        while_loading = Signal(seconds=dice.uniform(0, 0.5))
        while_writing = Signal(seconds=dice.uniform(0, 0.05), size=sizes[-1] + dice.randrange(900), file=str(paths[1]))
        code = processes.run(options, while_loading if kills % 4 == 0 else while_writing)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        sizes.append(paths[1].stat().st_size if paths[1].exists() else 0)
    assert kills >= 10 and len({*sizes}) > 8, "kills are spread over the job"
    found = answers(paths[1])
    assert sorted(answer["index"] for answer in found) == [*range(len(lines))]
    with OffloadRuntime.from_pretrained(DEMO_TARGET, device="cpu", dtype="float32") as runtime:
        for answer in found:
            line = lines[answer["index"]]
            reply = runtime.generate(
                line.get("prompt", line.get("messages")), max_new_tokens=line["max_new_tokens"], temperature=0.0
            )
            assert (answer["text"], answer["finish_reason"]) == (reply.text, reply.finish_reason)
            assert answer.get("id") == line.get("id")


def test_a_signal_ends_a_job_in_order(processes: BatchProcesses, paths: tuple[Path, Path]) -> None:
    """What was being written is dropped, what is written stays, and the command says how to go on."""
    write(paths[0], *({**question, "max_new_tokens": 30} for question in QUESTIONS * 4))
    options = ["--device", "cpu", "--dtype", "float32", "--temperature", "0", *files(paths)]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        size = paths[1].stat().st_size if paths[1].exists() else 0
        assert processes.run(options, Signal(number, size=size + 1, file=str(paths[1]))) == code
        assert paths[1].read_bytes().endswith(b"\n")
        count = len(answers(paths[1]))
        said = f"stopped: {count} of 28 lines have an answer in {paths[1]}; the same command goes on with the others\n"
        assert 0 < count < 28 and said in processes.errors.read_text()
    assert processes.run(options) == 0
    assert sorted(answer["index"] for answer in answers(paths[1])) == [*range(28)]


def test_a_second_signal_ends_a_job_at_once(counting: CountingRuntime, paths: tuple[Path, Path]) -> None:
    counting.after_pass = lambda: signal.raise_signal(signal.SIGINT)
    write(paths[0], {"prompt": "1 cat"}, *[{"prompt": "9 dogs"}] * 2)
    before = signal.getsignal(signal.SIGINT)
    assert main(files(paths)) == 130 and signal.getsignal(signal.SIGINT) is before
    counting.after_pass = lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)]
    assert main(files(paths)) == 130


def test_a_job_says_what_it_does(
    counting: CountingRuntime, paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(paths[0], {"prompt": "2 cats", "id": "a", "metadata": {"kind": 1}}, "", "{}", {"prompt": "1 dog"}, "oops")
    assert main(files(paths)) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "2 lines cannot be run and will get an error for an answer"
    assert said[1] == "  line 3: prompt: a line has either this or messages"
    assert said[-1].startswith("4 of 4 lines (100%) · 2 errors · ") and said[-1].endswith(f" · {paths[1]}")
    found = {answer["index"]: answer for answer in answers(paths[1])}
    assert {*found} == {0, 2, 3, 4} and found[0].keys() == {
        *("request_id", "index", "id", "metadata", "text", "finish_reason", "usage", "seed")
    }
    assert (found[0]["text"], found[0]["id"], found[0]["metadata"]) == ("cats cats", "a", {"kind": 1})
    assert main(files(paths)) == 0
    again = f"4 of 4 lines have an answer in {paths[1]}: nothing is left to do\n"
    assert capsys.readouterr().err == again
    assert main([*files(paths), "--temperature", "0.5"]) == 2
    assert "was begun with other sampling options" in capsys.readouterr().err
    assert main([*files(paths), "--chat"]) == 2


def test_a_terminal_gets_no_control_characters_from_a_line(
    counting: CountingRuntime, paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(paths[0], {"prompt": "1 cat", "\x1b[31m": 1}, {"prompt": "1 cat"})
    assert main(files(paths)) == 0
    assert "\x1b" not in (said := capsys.readouterr().err) and r"\x1b[31m: is not a field" in said
    write(paths[0], {"prompt": "1 cat", "\x1b[31m": 1})
    assert main(["--input", str(paths[0]), "--output", f"{paths[1]}.other"]) == 2
    assert "\x1b" not in (said := capsys.readouterr().err) and r"\x1b[31m: is not a field" in said


def test_no_model_is_loaded_for_lines_that_cannot_be_run(
    counting: CountingRuntime, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(paths[0], {"prompt": "1 cat"})
    assert main(files(paths)) == 0
    monkeypatch.undo()
    write(paths[0], {"prompt": "1 cat"}, "{}")
    assert main(files(paths)) == 0
    assert [answer["index"] for answer in answers(paths[1])] == [0, 1]


def test_a_fault_of_the_run_ends_the_job_and_keeps_its_replies(
    counting: CountingRuntime, paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    counting.faults = {f"{count} cats": ModelFilesError("the disk broke") for count in (2, 3, 4)}
    write(paths[0], *({"prompt": prompt} for prompt in ("1 dog", "2 cats", "3 cats", "4 cats")))
    assert main(files(paths)) == 3
    said = capsys.readouterr().err
    assert "stopped: 1 of 4 lines have an answer" in said and said.endswith("error: the disk broke\n")
    counting.faults = {}
    assert main(files(paths)) == 0 and counting.prompts.count("1 dog") == 1, "what is done is not written again"
    assert sorted(answer["index"] for answer in answers(paths[1])) == [0, 1, 2, 3]


def test_a_full_disk_ends_the_job_in_words(
    counting: CountingRuntime, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, whose files cannot grow beyond one reply."""
    write(paths[0], *[{"prompt": "def f(", "max_new_tokens": 3}] * 4)
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300));"
        "from offload_runtime.batch import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    job = [sys.executable, "-c", limited, "--device", "cpu", "--quiet", *files(paths)]
    ended = subprocess.run(job, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"error: {paths[1]}: File too large\n")
    assert len(answers(paths[1])) == 1


@pytest.mark.parametrize("arguments", [[], ["--input", "a"], ["--output", "a"]])
def test_both_files_are_needed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "arguments are required" in capsys.readouterr().err
