"""The prompt stands before the models are loaded: what works then, what waits, what ends it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from loaders.tokenizers import trial
from offload_runtime.chat import command, main
from offload_runtime.chat.background import FIRST_STAGE, Loading
from offload_runtime.chat.ready import can_converse
from offload_runtime.chat.session import WAIT_STOPPED
from offload_runtime.chat.status import loading_texts
from offload_runtime.errors import ModelFilesError
from offload_runtime.options.run_options import Options
from tests.fakes.chat_terminal import ROOT, Terminal
from tests.fakes.scripted_runtime import BROKEN, ScriptedRuntime
from tests.samples.tokenizer_samples import byte_level

WAITING = f" {FIRST_STAGE}\x1b"  # as it is shown below a message, not at the right of the prompt
Order = Callable[[str], None]


@pytest.fixture
def order(tmp_path: Path) -> Iterator[Order]:
    """Says how loading goes on in `behind`."""
    file = tmp_path / "loading"
    os.mkfifo(file)
    descriptor = os.open(file, os.O_RDWR)  # both ends, so that nothing waits for the other one

    def say(text: str) -> None:
        os.write(descriptor, f"{text}\n".encode())

    yield say
    os.close(descriptor)


@pytest.fixture
def behind(order: Order, tmp_path: Path) -> Iterator[Terminal]:
    """A chat at its prompt, the models of which are not loaded."""
    terminal = Terminal(state=tmp_path / "state", loading=tmp_path / "loading", options=["--system", "be brief"])
    terminal.expect(">>>")
    yield terminal
    terminal.close()


def test_nothing_heavy_is_imported_before_the_prompt_stands() -> None:
    code = (
        "import sys\n"
        "from offload_runtime.chat import command\n"
        "def read_line(prompt):\n"
        "    print(*sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)), 'at the prompt')\n"
        "    raise EOFError\n"
        "command.given_prompt, command.edits_lines = lambda *arguments: None, lambda: True\n"
        "line_reader, command.line_reader = command.line_reader, lambda *arguments: read_line\n"
        "assert line_reader(None, None, None)\n"
        "sys.exit(command.run(['--no-history']))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "at the prompt"), run.stderr


def test_commands_work_and_a_message_waits(behind: Terminal, order: Order, tmp_path: Path) -> None:
    behind.expect(FIRST_STAGE)
    for line, answer in (
        ("/help", "begin a new conversation"),
        ("/system", "system message: be brief"),
        ("/system be kind", "system message: be kind"),
        ("/think hide", "thinking: hide"),
        ("/set max_new_tokens 4", "stop a reply"),
        ("/plan", "total"),
        ("/stats", "no reply yet"),
        ("/nonsense", "there is no command"),
        ("/read /nowhere", "cannot be read"),
    ):
        behind.send(f"{line}\r")
        behind.expect(answer)
        behind.expect(">>>")
    behind.send("one\r")
    behind.expect(WAITING)
    order("read 1000 2000")
    behind.expect("loading target 50%")
    order("go")
    behind.expect("max_new_tokens = 4")
    for line, answer in (
        ("/system", "message: be kind"),
        ("/think", "thinking: hide"),
        ("/set seed default", "fresh (default)"),
    ):
        behind.send(f"{line}\r")
        behind.expect(answer)
    behind.send(f"/save {tmp_path}/chat.json\r")
    behind.expect("saved 3 messages")
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["content"] for message in messages[:2]] == ["be kind", "one"]
    behind.expect(">>>")  # between two prompts the system keeps Ctrl-D to itself
    behind.send("\x04")
    assert behind.exit_code() == 0


def test_ctrl_c_ends_the_wait_and_not_the_loading(behind: Terminal, order: Order, tmp_path: Path) -> None:
    """And what is said meanwhile is said when the next line is sent."""
    behind.send("one\r")
    behind.expect(WAITING)
    behind.send("\x03")
    behind.expect(WAIT_STOPPED)
    behind.expect(">>>")
    behind.send("tw")
    order("warn")
    order("read 1000 4000")
    assert "slow" not in behind.expect("25%")
    order("go")
    behind.send("o\r")
    behind.expect("warning: the disk is slow")
    behind.expect("tokens/pass")
    behind.send(f"/save {tmp_path}/chat.json\r")
    behind.expect("saved 3 messages")
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["content"] for message in messages[:2]] == ["be brief", "two"]


@pytest.mark.parametrize(
    ("keys", "code"),
    [("/bye\r", 0), ("\x04", 0), ("one\r", 130), ("", 130)],
    ids=["bye", "ctrl-d", "waiting", "ctrl-c"],
)
def test_the_chat_can_be_left_while_models_load(behind: Terminal, keys: str, code: int) -> None:
    behind.send(keys)
    if code:
        if keys:
            behind.expect(WAITING)
        behind.send("\x03")
        behind.expect("Ctrl-C ")  # answered
        behind.press_until_it_ends("\x03")
    assert behind.exit_code() == code and "Traceback" not in behind.output


def test_a_signal_ends_it_while_models_load(behind: Terminal) -> None:
    os.kill(behind.process, signal.SIGTERM)
    assert behind.exit_code() == 128 + signal.SIGTERM and "Traceback" not in behind.output


@pytest.mark.parametrize("sent", [False, True])
def test_loading_that_fails_is_told_and_what_was_typed_is_kept(
    behind: Terminal, order: Order, tmp_path: Path, sent: bool
) -> None:
    behind.send("a long question" + "\r" * sent)
    behind.expect(WAITING if sent else "question")
    order("fail")
    shown = behind.expect(f"error: {BROKEN}")
    assert behind.exit_code() == 3 and "Traceback" not in shown + behind.output
    assert "+a long question" in (tmp_path / "state" / "history").read_text()


def test_what_loading_raises_is_raised_where_it_is_waited_for() -> None:
    def load(progress: Callable[[str, int, int], None]) -> None:
        raise ModelFilesError(BROKEN)

    loading = Loading(load, ScriptedRuntime().plan)  # type: ignore[arg-type]
    with loading, pytest.raises(ModelFilesError, match=BROKEN):
        loading.wait()
    assert loading.finished and loading.texts() == []


def test_how_far_loading_is() -> None:
    assert loading_texts("starting", 0, 0, 9.0) == ["starting"]
    assert loading_texts("loading target", 25, 100, 1.0)[0] == "loading target 25%"
    texts = ["loading target 25% · 12 s left", "loading target 25%", "25%"]
    assert loading_texts("loading target", 25, 100, 4.0) == texts


def test_a_model_that_cannot_converse_is_refused_before_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_checkpoint(SHAPES["tiny"], tmp_path, torch.float32)
    options = Options(model=tmp_path)
    assert not can_converse(options, True)
    byte_level().save_pretrained(tmp_path)
    assert can_converse(options, False)
    assert not can_converse(Options(model=tmp_path, chat_template=tmp_path / "none.jinja"), False)
    (tmp_path / "chat_template.jinja").unlink()
    assert can_converse(options, True) and not can_converse(options, False)
    asked: list[str] = []
    monkeypatch.setattr(command, "given_prompt", lambda *arguments: None)
    monkeypatch.setattr(command, "edits_lines", lambda: True)
    monkeypatch.setattr(command, "line_reader", lambda *arguments: asked.append)
    assert main(["-m", str(tmp_path), "--no-history"]) == 2
    assert "--raw" in capsys.readouterr().err and not asked


def test_ctrl_c_does_not_reach_the_trial_of_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may run behind the prompt."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ncut -d' ' -f6 /proc/$$/stat\nexit 1\n")
    script.chmod(0o700)
    monkeypatch.setattr(trial.sys, "executable", str(script))
    assert int(trial._fault(tmp_path) or 0) not in (0, os.getsid(0))
