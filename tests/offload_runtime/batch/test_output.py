"""What a job writes: whole lines, once each, in a file that says how far the job is."""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from offload_runtime.batch import output_file
from offload_runtime.batch.job_input import JobInput, read_input
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.lines.batch_line import output_line
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.batch.output_file import OutputFile
from offload_runtime.errors import UsageError
from offload_runtime.options.sampling_options import SamplingOptions

KEYS = JobKeys("abcdef", "012345")


def read(path: Path, count: int = 3, keys: JobKeys = KEYS) -> JobInput:
    path.write_text("".join(f'{{"prompt": "{number} cats"}}\n' for number in range(count)))
    return read_input(path, Forms(keys, SamplingOptions()))


@pytest.fixture
def job(tmp_path: Path) -> JobInput:
    return read(tmp_path / "in.jsonl")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def answers(job: JobInput) -> Iterator[tuple[int, bytes]]:
    for line in job.lines():
        yield line.index, output_line({"request_id": job.forms.keys.key(line.digest, line.index), "index": line.index})


def finish(job: JobInput, output: Path) -> set[int]:
    """Answer what has no answer yet; return what had one."""
    with OutputFile(output, job) as file:
        before = {*file.done}
        for index, line in answers(job):
            file.append(index, line)
        assert not file.left
    return before


def indices(output: Path) -> list[int]:
    return [json.loads(line)["index"] for line in output.read_bytes().split(b"\n")[:-1]]


def test_a_file_cut_at_any_byte_is_completed_without_doubles(job: JobInput, output: Path) -> None:
    finish(job, output)
    whole = output.read_bytes()
    for cut in range(len(whole)):
        output.write_bytes(whole[:cut])
        before = finish(job, output)
        assert len(before) == whole[:cut].count(b"\n")
        assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_zeros_that_a_loss_of_power_leaves_are_dropped(job: JobInput, output: Path) -> None:
    finish(job, output)
    whole = output.read_bytes().splitlines(keepends=True)
    for torn in (b"\0" * 100, whole[1][:50] + b"\0" * 50):
        output.write_bytes(whole[0] + torn)
        assert finish(job, output) == {0} and output.read_bytes().count(b"\0") == 0
        assert sorted(indices(output)) == [0, 1, 2]


def test_lines_may_be_added_to_the_input(job: JobInput, output: Path) -> None:
    finish(job, output)
    assert finish(read(job.path, 5), output) == {0, 1, 2}
    assert indices(output) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"notes of mine", "its line 1 is not an answer"),
        (b"notes of mine\n", "its line 1 is not an answer"),
        (b'{"request_id": "1"}\n', "its line 1 is not an answer"),
        (b'{"index": 1}\n{"', "its line 1 is not an answer"),
        (b"\n", "its line 1 is not an answer"),
        (b"\0\0\n", "its line 1 is not an answer"),
    ],
)
def test_a_file_of_something_else_is_left_alone(job: JobInput, output: Path, held: bytes, said: str) -> None:
    output.write_bytes(held)
    with pytest.raises(UsageError, match=said):
        OutputFile(output, job)
    assert output.read_bytes() == held


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (JobKeys("ffffff", "012345"), "begun with another model, adapter, quantization or chat template: its"),
        (JobKeys("abcdef", "ffffff"), "begun with other sampling options: its"),
        (JobKeys("ffffff", "ffffff"), "another model, adapter, quantization or chat template and other sampling"),
    ],
)
def test_other_options_are_refused_by_name(job: JobInput, output: Path, keys: JobKeys, said: str) -> None:
    finish(job, output)
    before = output.read_bytes()
    with pytest.raises(UsageError, match=said):
        OutputFile(output, replace(job, forms=replace(job.forms, keys=keys)))
    assert output.read_bytes() == before


@pytest.mark.parametrize("keep", [slice(1, 3), slice(0, 2)])
def test_an_input_that_has_changed_is_refused_by_name(job: JobInput, output: Path, keep: slice) -> None:
    finish(job, output)
    before = output.read_bytes()
    lines = job.path.read_bytes().splitlines(keepends=True)
    job.path.write_bytes(b"".join(lines[keep]))
    with pytest.raises(UsageError, match=f"line {1 if keep.start else 3} of {job.path} is not what it was"):
        OutputFile(output, read_input(job.path, job.forms))
    assert output.read_bytes() == before


def test_the_answers_of_another_job_are_refused_by_name(job: JobInput, output: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "dogs"}\n')
    finish(read_input(other, Forms(JobKeys("ffffff", "012345"), SamplingOptions())), output)
    with pytest.raises(UsageError, match="holds the answers of another job"):
        OutputFile(output, job)


@pytest.mark.parametrize("damage", ["double", "cut and joined"])
def test_a_damaged_line_is_named(job: JobInput, output: Path, damage: str) -> None:
    finish(job, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines, lines[0]] if damage == "double" else [lines[0], lines[1][:-5], *lines[2:]]))
    said = "line 4 answers line 1 of the input a second time" if damage == "double" else "line 2 is damaged"
    with pytest.raises(UsageError, match=said):
        OutputFile(output, job)


@pytest.mark.parametrize("link", ["", "symbolic", "hard"])
def test_the_input_is_no_output(job: JobInput, output: Path, link: str) -> None:
    before = job.path.read_bytes()
    if link:
        (output.symlink_to if link == "symbolic" else output.hardlink_to)(job.path)
    with pytest.raises(UsageError, match="is the input itself"):
        OutputFile(output if link else job.path, job)
    assert job.path.read_bytes() == before


@pytest.mark.parametrize("kind", ["no directory", "a directory", "a fifo", "a file in the way"])
def test_what_cannot_be_written_is_refused(job: JobInput, tmp_path: Path, kind: str) -> None:
    path = {"no directory": tmp_path / "no" / "out", "a file in the way": job.path / "out"}.get(kind, tmp_path / "out")
    if kind == "a directory":
        path.mkdir()
    elif kind == "a fifo":
        os.mkfifo(path)
    said = {"no directory": "no is not there", "a file in the way": "Not a directory"}.get(kind, "not a regular file")
    with pytest.raises(UsageError, match=said):
        OutputFile(path, job)


def test_permissions_are_reported(job: JobInput, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(output))

    monkeypatch.setattr(output_file.os, "open", refuse)
    with pytest.raises(UsageError, match=r"cannot be written \(Permission denied\)"):
        OutputFile(output, job)


def test_two_processes_do_not_write_one_file(job: JobInput, output: Path) -> None:
    with OutputFile(output, job), pytest.raises(UsageError, match="another process is writing it"):
        OutputFile(output, job)
    finish(job, output)


@pytest.mark.parametrize("fits", [0, 1, 20])
def test_a_full_disk_leaves_whole_lines(
    job: JobInput, output: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    """The disk takes `fits` bytes of the second line."""
    write = os.write
    room = []

    def write_until_full(descriptor: int, data: bytes) -> int:
        if not room:
            return write(descriptor, data)
        if room[-1] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: room.pop(0)])

    monkeypatch.setattr(output_file.os, "write", write_until_full)
    with OutputFile(output, job) as file:
        (first, line), (second, other), _ = answers(job)
        file.append(first, line)
        room += [fits, 0] if fits else [0]
        with pytest.raises(OSError, match="No space left on device"):
            file.append(second, other)
        assert output.read_bytes() == line and file.left == 2
    room.clear()
    assert finish(job, output) == {0} and indices(output) == [0, 1, 2]


def test_an_answer_is_written_once(job: JobInput, output: Path) -> None:
    with OutputFile(output, job) as file:
        for index, line in [*answers(job), *answers(job)]:
            file.append(index, line)
    assert indices(output) == [0, 1, 2]


@pytest.mark.parametrize("change", ["removed", "replaced", "emptied", "added to"])
def test_a_file_that_others_change_meanwhile_is_noticed(job: JobInput, output: Path, change: str) -> None:
    with OutputFile(output, job) as file:
        (first, line), (second, other), _ = answers(job)
        file.append(first, line)
        if change in ("removed", "replaced"):
            output.unlink()
        if change != "removed":
            output.write_bytes({"replaced": line, "emptied": b"", "added to": line + b"\n"}[change])
        said = "changed" if change in ("emptied", "added to") else "removed or replaced"
        with pytest.raises(UsageError, match=f"was {said} while the job ran"):
            file.append(second, other)


def test_replies_reach_the_disk_in_a_rhythm(job: JobInput, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, clock = [], [0.0]
    monkeypatch.setattr(output_file.time, "monotonic", lambda: clock[0])
    with OutputFile(output, job) as file:
        monkeypatch.setattr(output_file.os, "fsync", lambda descriptor: synced.append(clock[0]))
        for index, line in answers(job):
            file.append(index, line)
            clock[0] += 3.0
    assert synced == [6.0, 9.0]  # one every five seconds, and one at the end


def test_errors_are_counted_again(job: JobInput, output: Path) -> None:
    line = next(job.lines())
    with OutputFile(output, job) as file:
        failure = job.forms.read(line).failure(UsageError("no"))
        file.append(line.index, output_line(failure), failed=True)
        assert file.failed == 1
    with OutputFile(output, job) as file:
        assert file.failed == 1 and file.done == {0}
