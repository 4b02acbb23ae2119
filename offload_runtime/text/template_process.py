"""The parent's side of `template_worker`: one child process for all templates, started when first needed."""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from offload_runtime.errors import ModelFilesError, OffloadError, UsageError

PROCESSOR_SECONDS = 3.0  # a rendering takes about 1 ms, or 0.1 s for a conversation of a million tokens
WALL_SECONDS = 60.0  # for a child that hangs without computing
SPARE_LENGTH = 1 << 20  # characters that a template may write in addition to its input
# The child finds its modules where the parent found them, whatever the parent did to its path.
_CHILD = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from offload_runtime.text.template_worker import serve; serve(requests=0, answers=1)"
)
REMEDY = "--chat-template FILE renders with another template, --raw with none"


class TemplateFailedError(ModelFilesError):
    """The template raised an error of its own; with other messages, or another form of them, it may work."""


class TemplateProcess:
    """Renders templates in a child process. Any number of threads may use it; they take turns."""

    def __init__(self, processor_seconds: float = PROCESSOR_SECONDS):
        self._seconds = processor_seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._pipes: tuple[Connection, Connection] | None = None
        atexit.register(self.close)

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text of a template for variables that JSON can hold.

        Raises UsageError where the template calls raise_exception, ModelFilesError for one that is damaged, fails, or
        exceeds a limit.
        """
        longest = SPARE_LENGTH + 8 * (len(json.dumps(variables)) + len(template))
        request = {"template": template, "variables": variables, "seconds": self._seconds, "longest": longest}
        with self._lock:
            answer = self._ask(json.dumps(request).encode())
        if "text" in answer:
            return answer["text"]
        raise _error(answer["error"], answer["message"])

    def close(self) -> None:
        """End the child process; the next rendering starts another."""
        child, self._child, pipes, self._pipes = self._child, None, self._pipes, None
        for pipe in pipes or ():
            pipe.close()
        if child is not None:
            child.kill()
            child.wait()

    def _ask(self, request: bytes) -> dict[str, str]:
        incoming, outgoing = self._pipes or self._start()
        try:
            outgoing.send_bytes(request)
            if incoming.poll(WALL_SECONDS):
                answer: dict[str, str] = json.loads(incoming.recv_bytes())
                return answer
        except (EOFError, OSError):
            pass  # the child is gone: its time limit or a crash ended it
        except BaseException:
            self.close()  # an unread answer must not be taken for the next one's
            raise
        self.close()
        return {"error": "time", "message": ""}

    def _start(self) -> tuple[Connection, Connection]:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C and Ctrl-Z at the terminal are the parent's
        )
        assert child.stdin is not None and child.stdout is not None
        incoming = Connection(os.dup(child.stdout.fileno()), writable=False)
        outgoing = Connection(os.dup(child.stdin.fileno()), readable=False)
        child.stdin.close()
        child.stdout.close()
        self._child, self._pipes = child, (incoming, outgoing)
        return self._pipes


@cache
def template_process() -> TemplateProcess:
    """The process that all conversations share."""
    return TemplateProcess()


def _forget_after_fork() -> None:
    """A forked child must not talk to its parent's process."""
    template_process.cache_clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _error(kind: str, message: str) -> OffloadError:
    what = {"time": "ran for too long", "memory": "took too much memory", "length": "wrote too much text"}
    if kind in what:
        return ModelFilesError(
            f"the model's chat template {what[kind]} and was stopped: it is damaged, or made to do so.\n  {REMEDY}"
        )
    if kind == "refused":
        return UsageError(f"the model's chat template refuses this conversation: {message}")
    if kind == "syntax":
        return ModelFilesError(f"the model's chat template is damaged: {message}\n  {REMEDY}")
    return TemplateFailedError(f"the model's chat template fails on this conversation: {message}\n  {REMEDY}")
