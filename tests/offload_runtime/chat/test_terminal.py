"""The chat at a terminal: Ctrl-C, signs of life, keys, what is kept, pipes, and a context that fills up."""

import hashlib
import os
import re
import signal
import stat
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from offload_runtime.chat import given
from offload_runtime.chat.commands import completions, is_command
from offload_runtime.chat.session import Chat
from offload_runtime.chat.status import activity_texts, duration, reply_line
from offload_runtime.chat.terminal import interrupt, keyboard
from offload_runtime.chat.terminal.activity import ActivityLine, column_after
from offload_runtime.chat.terminal.completion import CommandCompleter
from offload_runtime.chat.terminal.history import PrivateHistory, state_directory
from offload_runtime.chat.terminal.interrupt import Answer, Leave, StopOnInterrupt, ended_in_order
from offload_runtime.errors import UsageError
from offload_runtime.generation.reply import ReplyStats
from offload_runtime.speculation.target import PassProgress
from offload_runtime.text.conversation import Conversation
from tests.fakes.chat_terminal import Terminal
from tests.fakes.scripted_runtime import STORY, ScriptedRuntime, chat_with, run_chat
from tests.samples.tokenizer_samples import SAMPLES


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.conversation.messages]


# Ctrl-C


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def compute(condition: Callable[[], bool]) -> None:
    """Be inside calls that no signal handler of Python interrupts, most of the time."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)


def noting(answers: list[int]) -> Answer:
    """An answer that is noted when it can be seen."""

    def answer(showing: Callable[[], None]) -> None:
        showing()
        answers.append(1)

    return answer


def test_the_second_ctrl_c_leaves_after_the_first_was_answered() -> None:
    answers: list[int] = []
    with pytest.raises(Leave), StopOnInterrupt(noting(answers)) as stop:
        press()
        wait_until(lambda: bool(answers))
        assert stop.requested()
        press()
        wait_until(lambda: False)
    assert len(answers) == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_pressed_late_is_a_first_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "LEAVE_WITHIN", 0.0)
    answers: list[int] = []
    with StopOnInterrupt(noting(answers)):
        for count in (1, 2, 3):
            press()
            wait_until(lambda: len(answers) == count)  # noqa: B023


def test_ctrl_c_before_the_first_was_answered_is_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    answering, answered = [], []

    def answer(showing: Callable[[], None]) -> None:
        answering.append(1)
        if len(answering) == 1:
            press()  # while the answer is on its way
            time.sleep(0.2)
        showing()
        answered.append(1)

    with StopOnInterrupt(answer) as stop:
        press()
        wait_until(lambda: bool(answered))
        time.sleep(0.3)
        assert stop.requested()


def test_ctrl_c_at_the_instant_of_the_answer_is_a_second() -> None:
    def answer(showing: Callable[[], None]) -> None:
        showing()
        press()
        time.sleep(0.2)

    with pytest.raises(Leave), StopOnInterrupt(answer):
        press()
        wait_until(lambda: False)


def test_it_is_answered_while_the_main_thread_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the process is ended from the thread where the main one does not leave in time."""
    monkeypatch.setattr(interrupt, "REACT_WITHIN", 0.0)
    monkeypatch.setattr(interrupt, "LEAVE_WITHIN", 1e9)
    answers: list[int] = []
    abandoned: list[int] = []
    with StopOnInterrupt(noting(answers), abandon=lambda: abandoned.append(1)) as stop:
        signal.signal(signal.SIGINT, lambda *arguments: None)  # as while something must not be left half done
        press()
        compute(lambda: bool(answers))
        press()
        compute(lambda: bool(abandoned))
    assert stop.requested()


class Finalized:
    def __del__(self) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_in_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """Python prints what a finalizer raises, and goes on."""
    with pytest.raises(KeyboardInterrupt), ended_in_order():
        Finalized()
        wait_until(lambda: False)
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Terminal]:
    """A chat of 40 columns whose passes take 4 seconds, at its first prompt."""
    terminal = Terminal(seconds_per_step=4, columns=40, state=tmp_path)
    terminal.expect(">>>")
    yield terminal
    terminal.close()


def test_ctrl_c_twice_in_a_pass_of_seconds_leaves_with_the_conversation_kept(slow: Terminal, tmp_path: Path) -> None:
    slow.send("one\r")
    slow.expect("drafting")  # half a second on, and long before the first text
    slow.send("typed meanwhile")
    slow.expect("Grüß", seconds=60)
    slow.send("\x03")
    shown = slow.expect("Ctrl-C within 2 s leaves")
    assert "typed" not in shown
    slow.send("\x03")
    slow.expect("/load last")
    assert slow.exit_code() == 130
    kept = tmp_path / "last.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    chat = chat_with(ScriptedRuntime(), ["/load last"], last=kept)
    question, reply = contents(chat)
    assert question == "one" and reply and STORY.startswith(reply)
    assert "+one" in (tmp_path / "history").read_text()
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600


def test_echo_is_off_in_a_reply_and_back_at_the_prompt() -> None:
    terminal = Terminal(seconds_per_step=0.2)
    try:
        terminal.expect(">>>")
        terminal.send("one\r")
        terminal.expect("once")
        assert not termios.tcgetattr(terminal.descriptor)[3] & termios.ECHO
        terminal.send("\x03")
        terminal.expect(">>>")
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()


# Signs of life


def test_an_activity_line_fits_behind_the_text_and_goes(tmp_path: Path) -> None:
    texts = ["reading 1,234 tokens · layer 3/80 · 12 s left", "layer 3/80", "3/80"]
    for column, expected in ((0, "layer 3/80"), (20, "layer 3/80"), (32, "3/80"), (36, None), (39, "")):
        with (tmp_path / "screen").open("w+", encoding="utf-8") as file:
            line = ActivityLine(Console(file=file, force_terminal=True, width=40, _environ={"TERM": "xterm"}))
            line.draw(column, texts)
            line.erase()
            shown = (tmp_path / "screen").read_text(encoding="utf-8")
        visible = re.sub(r"\x1b(\[[?0-9]*[a-zA-Z]|[78])", "", shown)
        assert column + len(visible) < 40
        assert visible == "" if expected == "" else visible.endswith(expected or visible[-1])
        assert not visible or shown.endswith("\x1b[K")


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("abc", 0, 3),
        ("abc", 78, 1),
        ("a\nbc", 9, 2),
        ("你", 79, 2),
        ("\t", 3, 8),
        ("\t", 78, 79),
        ("x\n", 5, 0),
        ("", 4, 4),
    ],
)
def test_the_column_of_the_cursor(text: str, column: int, expected: int) -> None:
    assert column_after(text, column, 80) == expected


def test_what_is_said_of_a_pass() -> None:
    reading = PassProgress(tokens=1234, passes=1, layers=80, layers_begun=21, seconds=5.0)
    assert activity_texts(reading)[0] == "reading 1,234 tokens · layer 21/80 · 15 s left"
    step = PassProgress(tokens=1, passes=1, layers=80, layers_begun=2, seconds=0.6)
    assert activity_texts(step) == ["layer 2/80"] * 3  # no time left is known yet
    assert activity_texts(step, stopping=True)[0] == "stopping · layer 2/80"
    several = PassProgress(tokens=9000, passes=4, layers=320, layers_begun=161, seconds=60)
    assert activity_texts(several)[0] == "reading 9,000 tokens · 50% of 4 passes · 60 s left"
    assert activity_texts(None) == ["drafting"]
    assert [duration(seconds) for seconds in (0.2, 59, 150, 7500)] == ["1 s", "59 s", "2 min", "2 h 05 min"]


def test_reading_and_writing_have_rates_of_their_own() -> None:
    stats = ReplyStats(prompt_tokens=1000, prompt_tokens_read=800, prompt_seconds=4.0, seconds_to_first_token=5.0)
    stats.tokens, stats.first_tokens, stats.passes, stats.draft_seconds, stats.target_seconds = 21, 1, 11, 1.0, 14.0
    content = stats.as_dict()
    assert (content["prompt_tokens_per_second"], content["reply_tokens_per_second"]) == (200.0, 2.0)
    line = reply_line(stats, ScriptedRuntime().plan, 1021)
    assert line.startswith("prompt 800 of 1000 tokens, 200 tok/s · 21 tokens · 2.0 tok/s · first token 5.0 s")
    assert ReplyStats().prompt_tokens_per_second is None and ReplyStats().reply_tokens_per_second is None


# Keys


def offered(text: str) -> list[str]:
    completer = CommandCompleter(completions())
    return [found.text for found in completer.get_completions(Document(text), CompleteEvent())]


def test_tab_completes_commands_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "notes.d").mkdir()
    (tmp_path / "no\x1b[31m").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert offered("/com") == ["/compact "] and "/help " in offered("/")
    assert offered(f"/read {tmp_path}/not") == ["es.d/", "es.txt"] == offered("/load ~/not")
    assert offered("/set top") == ["top_p ", "top_k "]
    assert offered(f"{tmp_path}/not") == offered("hello") == offered("/read a\n/") == offered("/nothing x") == []
    assert "\x1b[31m" not in "".join(offered(f"/save {tmp_path}/no"))


def test_pasted_lines_are_sent_as_they_are() -> None:
    paste = '"""Docstring of a module."""\n\nimport os\n/bye'
    begun = '"""begun\nand not ended'
    assert contents(chat_with(ScriptedRuntime(), [paste, begun]))[::2] == [paste, begun]


def test_system_takes_several_lines() -> None:
    assert contents(chat_with(ScriptedRuntime(), ["/system be\nkind"])) == ["be\nkind"]
    assert contents(chat_with(ScriptedRuntime(), ['/system """', "be", "kind", '"""'])) == ["be\nkind"]
    assert contents(chat_with(ScriptedRuntime(), ["/system\nbe\nkind", "hi"]))[:2] == ["be\nkind", "hi"]
    assert is_command("/system a\nb") and not is_command("/clear\nis one") and not is_command("/sys\nx")


def test_read_sends_what_a_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my notes.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    os.mkfifo(tmp_path / "pipe")
    bad = [f"/read {tmp_path}/{name}" for name in ("missing", "pipe", "")] + ["/read"]
    chat = chat_with(ScriptedRuntime(), [f"/read {file}", f"/read {file}\nWhat is that?", *bad])
    assert contents(chat)[::2] == ["one\ntwo", "What is that?\n\none\ntwo"]
    assert capsys.readouterr().err.count("error: ") == 4


# What is kept


def test_the_state_directory_is_private_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_STATE", str(tmp_path / "a" / "b"))
    made = state_directory()
    assert made and stat.S_IMODE(made.stat().st_mode) == 0o700
    monkeypatch.setenv("SEQUOIA_OFFLOAD_STATE", "off")
    assert state_directory() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEQUOIA_OFFLOAD_STATE", str(tmp_path / "file" / "x"))
    assert state_directory() is None
    monkeypatch.delenv("SEQUOIA_OFFLOAD_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_directory() == tmp_path / "xdg" / "sequoia-offload"


def test_history_is_read_back_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "history"
    PrivateHistory(file).store_string("one\ntwo \udcff")
    assert [*PrivateHistory(file).load_history_strings()] == ["one\ntwo ?"]
    file.write_bytes(b"".join(b"\n# now\n+%d\n" % index for index in range(200_000)))
    strings = [*PrivateHistory(file).load_history_strings()]
    assert strings[0] == "199999" and 10_000 < len(strings) < 60_000 and file.stat().st_size < 1_000_000
    file.unlink()
    file.mkdir()
    broken = PrivateHistory(file)
    broken.store_string("lost")
    assert [*broken.load_history_strings()] == []


def test_a_chat_that_is_left_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = tmp_path / "last.json"
    chat_with(ScriptedRuntime(), ["/load last", "/load last"], last)
    assert not last.exists() and capsys.readouterr().err.count("error: ") == 2
    last.write_text("damaged")
    chat_with(ScriptedRuntime(), ["one"], last)
    chat_with(ScriptedRuntime(), ["/system alone"], last)  # nothing to keep: the one before stays
    assert contents(chat_with(ScriptedRuntime(), ["/load last"], last)) == ["one", "hello world"]
    nowhere = tmp_path / "gone" / "last.json"
    chat_with(ScriptedRuntime(), ["one"], nowhere)
    assert "could not be kept" in capsys.readouterr().err


# Pipes


def piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "piped"
    file.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", file.open(encoding="utf-8"))


def asked(arguments: list[str]) -> str:
    runtime = ScriptedRuntime()
    assert run_chat(runtime, [*arguments, "--quiet"]) == 0
    return runtime.tokenizer.decode(runtime.prompts[0])


def test_a_prompt_and_a_pipe_are_used_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    piped(monkeypatch, tmp_path, b"\xef\xbb\xbfall of\r\nit\n")
    assert "Summarize:\n\nall of\nit</s>" in asked(["-p", "Summarize:"])
    piped(monkeypatch, tmp_path, b"all of it\n")
    assert "\nall of it</s>" in asked(["-f", "-"])
    piped(monkeypatch, tmp_path, b"")
    assert "\nSummarize:</s>" in asked(["-p", "Summarize:"])


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(given, "PATIENCE", 0.05)
    reading, writing = os.pipe()
    with open(reading) as stdin:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stdin)
        runtime = ScriptedRuntime()
        assert run_chat(runtime, ["-p", "hi"]) == 0
        assert "nothing was piped in" in capsys.readouterr().err
        os.write(writing, b"more")
        os.close(writing)
        assert run_chat(runtime, ["-p", "hi"]) == 0
    assert "hi\n\nmore" in runtime.tokenizer.decode(runtime.prompts[1])


def test_more_than_any_context_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(given, "MOST_BYTES", 100)
    (tmp_path / "long").write_text("x" * 101)
    with pytest.raises(UsageError, match="no context holds"):
        given.read_text(tmp_path / "long")


# A context that fills up

SHORT = "hello world. " * 3


def test_a_full_context_is_announced_and_compact_makes_room(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = ScriptedRuntime([SHORT], context_length=120)
    chat = chat_with(runtime, ["/system be kind", "one", "two", "three"])
    shown = capsys.readouterr().err
    assert re.search(r"The context is 7\d% full, \d+ tokens left: then replies end early. /undo", shown)
    assert "/compact" in shown and shown.index("% full") < shown.index("tokens left")
    before = chat.conversation.token_count
    chat.room.compact()
    shown = capsys.readouterr().err
    assert re.search(r'dropped the (2 )?oldest turns?, \d+ tokens: "one"', shown)
    assert contents(chat)[0] == "be kind" and contents(chat)[-2:] == ["three", SHORT]
    assert chat.conversation.token_count < before and chat.conversation.token_count <= 60
    assert chat.runtime.tokenizer.decode(chat.conversation.prompt_ids()).startswith("<s><|system|>\nbe kind")


def test_compact_drops_one_turn_at_least_and_never_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(ScriptedRuntime(), ["one", "two", "/compact", "/compact"])
    assert contents(chat) == ["two", "hello world"]
    assert "no older turn" in capsys.readouterr().err


def test_overflow_drops_the_oldest_turns_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = ScriptedRuntime([SHORT], context_length=120)
    chat = chat_with(runtime, ["/system be kind", *(f"question {number}" for number in range(8))], overflow="drop")
    shown = capsys.readouterr().err
    assert contents(chat)[0] == "be kind" and contents(chat)[-2:] == ["question 7", SHORT]
    assert '"question 0"' in shown and "error" not in shown and "context is full" not in shown
    assert all(120 - len(ids) >= 30 for ids in runtime.prompts)
    assert len(contents(chat)) < 17


def test_ids_of_what_stays_are_kept() -> None:
    """Also where the reply is not how its text would be encoded; a text still begins as texts do."""
    runtime = ScriptedRuntime()
    for name, raw in (("byte-level", False), ("byte-level", True), ("metaspace", False), ("metaspace", True)):
        runtime.tokenizer = SAMPLES[name]()
        conversation = Conversation(runtime.tokenizer, raw=raw)
        ends = [runtime.tokenizer.eos_token_id]
        letters = [runtime.tokenizer.encode(f"<s>{letter}", add_special_tokens=False)[-1] for letter in "hello"]
        conversation.add_user("one")
        conversation.add_reply([*letters, *ends], "hello", ends)
        conversation.add_user("two")
        conversation.add_reply([*letters, *ends], "hello", ends)
        assert [message["content"] for message in conversation.drop_oldest()] == ["one", "hello"]
        ids = conversation.add_user("three")
        text = " ".join(map(str, ids))
        assert " ".join(map(str, letters)) in text
        expected = Conversation(runtime.tokenizer, raw=raw)
        expected.messages = list(conversation.messages)
        anew = expected.prompt_ids()
        assert ids[0] == anew[0] and (raw or runtime.tokenizer.decode(ids) == runtime.tokenizer.decode(anew))
        assert [message["content"] for message in conversation.drop_oldest()] == ["two", "hello"]
        assert conversation.drop_oldest() == []


@pytest.mark.timeout(60)  # where the library fails, it waits for a key
@pytest.mark.parametrize("pasted", ["\x1b[31mred\x1b[0m", "\x1b[<0;3m", "\x1b[M!!!", "\x1b[1;2;3;4M"])
def test_escape_sequences_that_are_typed_or_pasted_without_brackets_do_no_harm(pasted):
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        session = keyboard._session(None, CommandCompleter({}))
        keys.send_text(f"a{pasted}b\r")
        line = session.prompt(">>> ")
    assert line.startswith("a") and line.endswith("b")
