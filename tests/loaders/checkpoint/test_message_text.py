"""What of files reaches a terminal through messages: escaped, and bounded."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from loaders.errors import ModelFilesError, OffloadError
from loaders.hub.names import directory_name
from loaders.message_text import ROW, displayable, message_text, quoted
from offload_runtime.chat import main
from offload_runtime.chat.terminal.screen import Screen
from offload_runtime.errors import DoesNotFitError, PromptError, UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import DEMO_TARGET, resolve_model

STEERING = ["\x1b[31m", "\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\u202e", "\u2066", "\u200b", "\u2028", "\ud800"]


@pytest.mark.parametrize("mark", STEERING)
@pytest.mark.parametrize("kind", [OffloadError, ModelFilesError, UsageError, PromptError])
def test_errors_escape_what_steers_a_terminal(kind, mark):
    message = str(kind(f"before {mark} after"))
    assert mark not in message and message.startswith("before \\") and message.endswith(" after")


def test_an_error_with_more_to_it_escapes_as_well():
    error = DoesNotFitError("\x1b[2Jgone", 3, 2, ("--device cpu",))
    assert str(error) == "\\x1b[2Jgone" and (error.needed, error.available) == (3, 2)


def test_every_character_is_shown_or_escaped():
    for code in (*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000), 0x1F600, 0xE0041, 0x10FFFF):
        shown = displayable(chr(code))
        steers = (
            unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and chr(code) not in "\n\t"
        )
        assert (shown != chr(code)) or not steers, hex(code)
        assert shown.encode().decode() == shown  # it can be written


def test_plain_text_stays_as_it_is():
    text = "größer als 中文 😀\n  --device cpu   runs without"
    assert displayable(text) == message_text(text) == text
    assert displayable(displayable("\x1b")) == displayable("\x1b")


@pytest.mark.parametrize(
    "text", ["x" * 90_000, "word " * 20_000, "line\n" * 5_000, ("y" * 2_000 + "\n") * 50, "\x1b" * 9_999]
)
def test_a_message_fits_a_screen_and_keeps_both_ends(text):
    shown = str(UsageError(f"what is wrong: {text}\n  --option   would work"))
    assert sum(max(1, -(-len(line) // ROW)) for line in shown.split("\n")) <= 23
    assert shown.startswith("what is wrong: ") and shown.endswith("\n  --option   would work") and "…" in shown


def test_values_in_sentences():
    assert quoted("model.layers.0") == "model.layers.0"
    assert quoted("a\nb") == r"'a\nb'"
    assert quoted(10**5000).startswith("a number of ")
    assert quoted([10**5000]) == "a list"
    assert len(quoted("x" * 999)) == 60


@pytest.mark.parametrize(
    "model",
    ["x" * 256, "./" + "ü" * 128, "org/" + "x" * 5000, "a\0b", Path("/tmp") / ("x" * 300), "models--a--" + "x" * 300],
)
def test_a_path_that_no_file_can_have_is_refused_by_name(model):
    with pytest.raises(ModelFilesError, match="no file or directory can have this name"):
        resolve_model(model)


def test_names_in_plans_banners_and_progress_lines_are_escaped(tmp_path, capsys):
    directory = tmp_path / "model\x1b]0;title\x07\u202e\nerror: none"
    shutil.copytree(DEMO_TARGET, directory)
    assert main(["--model", str(directory), "--plan"]) == 0
    plan = capsys.readouterr().out
    assert directory_name(directory) == r"model\x1b]0;title\x07\u202e\nerror: none"
    assert main(["--model", str(directory), "--plan", "--json"]) == 0
    as_json = capsys.readouterr().out
    (directory / "config.json").write_text('{"model_type": "\\u001b[31m\\u202e"}')
    assert main(["--model", str(directory), "--prompt", "x"]) == 3
    error = capsys.readouterr().err
    for text in (plan, as_json, error):
        assert text and not any(mark in text for mark in ("\x1b", "\x07", "\u202e"))


def test_the_screen_escapes_what_it_notes_and_says(capsys):
    screen = Screen()
    for write in (screen.note, screen.say, screen.error):
        write("a\x1b]0;b\x07 \u202e c")
    assert capsys.readouterr().err.count("a\\x1b]0;b\\x07 \\u202e c") == 3


def test_an_operating_system_error_is_a_message(capsys):
    assert run_command(lambda: Path("/nowhere\x1b/file").read_bytes() and 0) == 1
    assert capsys.readouterr().err == "error: /nowhere\\x1b/file: No such file or directory\n"
