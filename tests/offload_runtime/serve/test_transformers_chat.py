"""`transformers chat`, the command line client of transformers, against the server, in a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.served import PATIENCE, Served
from tests.fakes.shared_runtime import SharedRuntime, answer_to

CHAT = "from transformers.cli.transformers import main; main()"


@pytest.mark.timeout(300)
def test_a_conversation(tmp_path: Path) -> None:
    with Served(SharedRuntime()) as server:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", CHAT, "chat", "tiny", server.url, "max_new_tokens=40", "do_sample=False"]
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "100", "HF_HUB_OFFLINE": "0"}
        child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment)
        os.close(theirs)
        os.write(ours, b"hello there\n!exit\n")
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            pass  # the terminal's other side is closed
        finally:
            os.close(ours)
        assert child.wait(PATIENCE) == 0, shown.decode()
        assert answer_to("hello there") in shown.decode(), shown.decode()
        arguments = server.runtime.asked[0].arguments
        assert (arguments["max_new_tokens"], arguments["temperature"]) == (40, 0.0)
