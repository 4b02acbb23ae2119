"""What a reply may do to the terminal it is written to, and what a program that reads it gets."""

import sys

import pytest

from offload_runtime.chat.terminal.screen import Screen
from tests.fakes.scripted_runtime import STORY


@pytest.mark.parametrize("pieces", [[STORY], list(STORY)], ids=["at once", "by characters"])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_reply_steers_no_terminal_and_reaches_a_pipe_as_it_is(
    terminal: bool, pieces: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\x1b[31m" in STORY
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    screen = Screen()
    for piece in pieces:
        screen.write(piece)
    assert capsys.readouterr().out == (STORY.replace("\x1b", "") if terminal else STORY)
