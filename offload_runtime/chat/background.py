"""Background loading: a thread loads what replies need while the user already types.

Meanwhile the main thread imports none of the same modules: two threads in one import cycle see half-loaded modules.
"""

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.message_text import displayable
from loaders.progress import StageProgress
from offload_runtime.chat.status import loading_texts

if TYPE_CHECKING:
    from offload_runtime.chat.thinking import Thinking
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.text.conversation import Conversation
    from scheduler.plan.plan import Plan


THREAD = "loading"
TICK = 0.1  # seconds between two checks whether to stop waiting
FIRST_STAGE = "starting PyTorch"


@dataclass(frozen=True)
class Loaded:
    """What replies need."""

    runtime: "OffloadRuntime"
    conversation: "Conversation"
    thinking: "Thinking"


class WaitStopped(Exception):
    """The wait was stopped; loading goes on."""


class Loading:
    """Runs `load` in a thread; `load` gets a callback to call with (stage, bytes done, bytes in total).

    error: what `load` raised. plan: the plan known before loading. notes: warnings raised while loading; printed at
    once, they would land in the line being typed. A context manager that closes what was loaded.
    """

    def __init__(self, load: Callable[[StageProgress], Loaded], plan: "Plan"):
        self.error: BaseException | None = None
        self.notes: list[str] = []
        self._load, self._plan = load, plan
        self._loaded: Loaded | None = None
        self._finished = threading.Event()
        self._begun = False
        self._thread: threading.Thread | None = None
        self._progress = (FIRST_STAGE, 0, 0, time.monotonic())
        self._changed: Callable[[], None] = lambda: None

    @classmethod
    def done(cls, loaded: Loaded) -> "Loading":
        """A finished instance, for what is already loaded."""
        loading = cls(lambda progress: loaded, loaded.runtime.plan)
        loading._begun = True
        loading._run()
        return loading

    @property
    def plan(self) -> "Plan":
        """The plan of what is loaded or, before that, of what will be."""
        return self._loaded.runtime.plan if self._loaded else self._plan

    @property
    def finished(self) -> bool:
        """Whether everything is loaded or loading has failed."""
        return self._finished.is_set()

    def texts(self) -> list[str]:
        """Progress, long form first, then shorter ones; empty once finished."""
        stage, done_bytes, total_bytes, since = self._progress
        seconds = time.monotonic() - since
        return [] if self.finished else loading_texts(displayable(stage), done_bytes, total_bytes, seconds)

    def begin(self, changed: Callable[[], None] = lambda: None) -> None:
        """Start the thread if it is not running yet. It calls `changed` whenever the progress changes."""
        if not self._begun:
            self._begun, self._changed = True, changed
            self._thread = threading.Thread(target=self._run_quietly, name=THREAD, daemon=True)
            self._thread.start()

    def wait(self, should_stop: Callable[[], bool] = lambda: False) -> Loaded:
        """Wait for what is loaded and return it. Raises what loading raised, and WaitStopped when asked to stop."""
        self.begin()
        while not self._finished.wait(TICK):
            if should_stop():
                raise WaitStopped
        if self._loaded is None:
            assert self.error is not None
            raise self.error
        return self._loaded

    def __enter__(self) -> "Loading":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.finished and self._thread:
            self._thread.join()  # about to end
        if self._loaded:
            self._loaded.runtime.close()

    def _run(self) -> None:
        try:
            self._loaded = self._load(self._show)
        except BaseException as error:  # for the main thread, which raises it
            self.error = error
        finally:
            self._finished.set()
            self._changed()

    def _run_quietly(self) -> None:
        show, warnings.showwarning = warnings.showwarning, self._note
        try:
            self._run()
        finally:
            warnings.showwarning = show

    def _note(self, message: Warning | str, *_: object, **__: object) -> None:
        self.notes.append(f"warning: {message}")

    def _show(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        same = stage == self._progress[0]
        self._progress = (stage, done_bytes, total_bytes, self._progress[3] if same else time.monotonic())
        self._changed()


def without_waiting(run: Callable[[], int]) -> int:
    """Run and return the exit code; if the background thread still loads, end the process with that code at once.

    Python's own shutdown would wait for the reading thread pools and tear down libraries that are being imported.
    """
    try:
        code = run()
    except SystemExit as ended:  # by a signal
        if not _is_running():
            raise
        code = ended.code if isinstance(ended.code, int) else 1
    if _is_running():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def _is_running() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())
