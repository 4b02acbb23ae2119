"""What a job reads: files with anything in them, line by line."""

import json
import os
from pathlib import Path

import pytest

from offload_runtime.batch import input_file
from offload_runtime.batch.input_file import InputLine, input_lines
from offload_runtime.batch.job_input import read_input
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.lines.batch_line import UnreadableLine, output_line
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.errors import UsageError
from offload_runtime.options.sampling_options import SamplingOptions

FORMS = Forms(JobKeys("abcdef", "012345"), SamplingOptions(temperature=0.5, max_new_tokens=9))
GOOD = b'{"prompt": "a"}'
HOSTILE = {
    "not JSON": (b"hello", "its JSON cannot be read"),
    "half": (b'{"prompt": "a', "its JSON cannot be read"),
    "not an object": (b'["a"]', "not an object"),
    "NUL": (b"\0\0\0", "its JSON cannot be read"),
    "not UTF-8": (b'{"prompt": "\xff"}', "cannot be read"),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nest too deeply"),
    "a number of many digits": (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "5,000 digits"),
    "half a character": (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
    "no prompt": (b"{}", "prompt: a line has either this or messages"),
    "two prompts": (b'{"prompt": "a", "messages": []}', "either this or messages"),
    "prompt of wrong type": (b'{"prompt": {"a": 1}}', "prompt: must be a text or a list of token ids, not an object"),
    "tokens of wrong type": (b'{"prompt": [1, true]}', "prompt: must be a text or a list of token ids, not a list"),
    "no messages": (b'{"messages": []}', "messages: must be a list of messages, not an empty one"),
    "messages of wrong type": (b'{"messages": ["a"]}', "messages[0]: must be an object"),
    "id of wrong type": (b'{"prompt": "a", "id": [1]}', "id: must be a text or a whole number"),
    "an id that is true": (b'{"prompt": "a", "id": true}', "id: must be a text or a whole number"),
    "a value that does not fit": (b'{"prompt": "a", "top_p": 7}', "out of range"),
    "a value of wrong type": (b'{"prompt": "a", "temperature": true}', "temperature: must be a number, not true"),
    "texts of wrong type": (b'{"prompt": "a", "stop": [1]}', "stop"),
    "an unknown name": (b'{"prompt": "a", "temprature": 1}', "did you mean 'temperature'?"),
    "a column of a table": (b'{"prompt": "a", "topic": 1}', "what is only to come back goes into metadata"),
    "the same value twice": (b'{"prompt": "a", "max_tokens": 1, "max_new_tokens": 2}', "differs from"),
    "no number": (b'{"prompt": "a", "metadata": {"x": NaN}}', "NaN"),
}


def written(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(end.join([*lines, b""]))
    return path


def line_of(text: bytes | None) -> InputLine:
    return InputLine(4, text, "0" * 16)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_line_ends_and_byte_order_marks_do_not_count(tmp_path: Path, end: bytes, begin: bytes, last: bytes) -> None:
    plain = [*input_lines(written(tmp_path / "plain", GOOD, b"", b'{"prompt": "b"}'))]
    (tmp_path / "other").write_bytes(begin + end.join([GOOD, b"  ", b'{"prompt": "b"}']) + last)
    assert [*input_lines(tmp_path / "other")] == plain
    assert [(line.index, line.text) for line in plain] == [(0, GOOD), (2, b'{"prompt": "b"}')]
    assert plain[0].digest != plain[1].digest


def test_a_line_that_is_too_long_is_left_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MOST_BYTES", 30), ("_WITH_END", 32), ("_PIECE", 7)):
        monkeypatch.setattr(input_file, name, most)
    long, whole = b"x" * 1000, b'{"prompt": "' + b"a" * 16 + b'"}'
    lines = [*input_lines(written(tmp_path / "in", whole, long, b"", long + b"y", GOOD))]
    assert [(line.index, line.text) for line in lines] == [(0, whole), (1, None), (3, None), (4, GOOD)]
    assert lines[1].digest != lines[2].digest
    assert isinstance(FORMS.read(lines[1]), UnreadableLine)
    (tmp_path / "in").write_bytes(long)
    assert [line.text for line in input_lines(tmp_path / "in")] == [None]


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "utf-16"])
def test_what_is_no_file_of_lines_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "utf-16":
        path.write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    said = {"missing": "No such file", "utf-16": "save it as UTF-8"}.get(kind, "not a regular file")
    with pytest.raises(UsageError, match=said):
        list(input_lines(path))


@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_line_is_answered_with_what_is_wrong(text: bytes, said: str) -> None:
    line = FORMS.read(line_of(text))
    with pytest.raises(UsageError) as error:
        line.requests()
    answer = json.loads(output_line(line.failure(error.value)))
    assert answer["error"]["code"] == "invalid_request" and said in answer["error"]["message"]
    assert answer["index"] == 4 and answer["request_id"] == f"abcdef-012345-{'0' * 16}-4"


def test_values_of_a_line_go_before_those_of_the_command() -> None:
    text = b'{"prompt": "a", "max_tokens": 3, "top_p": 0.5, "stop": "[END]", "logit_bias": {"5": -1}, "seed": null}'
    (request,) = FORMS.read(line_of(text)).requests()
    values = {name: value for name, value in request.arguments.items() if value is not None}
    assert request.prompt == "a" and values == {
        **{"temperature": 0.5, "max_new_tokens": 3, "top_p": 0.5},
        **{"stop": ("[END]",), "logit_bias": {5: -1.0}},
    }


def test_a_reply_can_be_held_to_a_format() -> None:
    """A name of a file, which the command takes, is none in a line: a line cannot make the program read files."""
    (request,) = FORMS.read(line_of(b'{"prompt": "a", "response_format": {"type": "json_object"}}')).requests()
    assert request.arguments["response_format"] == {"type": "json_object"}
    for given in (b'"/etc/passwd"', b"5", b'{"type": "xml"}'):
        with pytest.raises(UsageError, match="response_format"):
            FORMS.read(line_of(b'{"prompt": "a", "response_format": ' + given + b"}")).requests()


def test_prompts_are_texts_tokens_or_conversations() -> None:
    question = {"role": "user", "content": "a"}
    chat = Forms(FORMS.keys, FORMS.defaults, chat=True)
    for text, forms, prompt in (
        (b'{"prompt": "a"}', FORMS, "a"),
        (b'{"prompt": "a"}', chat, [question]),
        (b'{"prompt": [1, 2]}', chat, [1, 2]),
        (b'{"messages": [{"role": "user", "content": "a"}]}', FORMS, [question]),
    ):
        assert forms.read(line_of(text)).requests()[0].prompt == prompt


def test_a_line_of_output_is_one_line_for_everybody() -> None:
    line = output_line({"text": "a\n\r\x0b\x1c\x85\u2028\u2029ü😀"})
    assert len(line.decode().splitlines()) == 1 and "ü😀" in line.decode()
    assert json.loads(line) == {"text": "a\n\r\x0b\x1c\x85\u2028\u2029ü😀"}


def test_bad_lines_are_counted_before_anything_runs(tmp_path: Path) -> None:
    job = read_input(written(tmp_path / "in", GOOD, b"", b"x", b"{}", GOOD), FORMS)
    assert len(job) == 4 and job.bad == {2, 3} and job.first_bad is not None
    assert job.first_bad.startswith("line 3: its JSON cannot be read")
    assert [line.index for line in job.lines()] == [0, 2, 3, 4]


@pytest.mark.parametrize("lines", [[], [b""], [b"x"], [b"[", GOOD + b",", b"]"]])
def test_a_file_without_any_line_to_run_is_refused(tmp_path: Path, lines: list[bytes]) -> None:
    with pytest.raises(UsageError, match=r"holds no line|none of its"):
        read_input(written(tmp_path / "in", *lines), FORMS)


@pytest.mark.parametrize("lines", [[GOOD, b'{"prompt": "c"}'], [GOOD], [GOOD, b'{"prompt": "b"}', GOOD]])
def test_an_input_that_changes_while_the_job_runs_is_noticed(tmp_path: Path, lines: list[bytes]) -> None:
    path = written(tmp_path / "in", GOOD, b'{"prompt": "b"}')
    job = read_input(path, FORMS)
    written(path, *lines)
    with pytest.raises(UsageError, match="has changed while the job ran"):
        list(job.lines())
