"""A reply while it is generated: its text as it comes, activity in between, and Ctrl-C."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from offload_runtime.chat.background import Loaded, Loading
from offload_runtime.chat.status import activity_texts
from offload_runtime.chat.terminal.interrupt import StopOnInterrupt
from offload_runtime.chat.terminal.screen import Screen
from offload_runtime.options.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from offload_runtime.generation.reply import Reply
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.text.conversation import Conversation

SILENCE = 0.5  # seconds without text before activity is shown
STOPPING = "stopping; Ctrl-C within 2 s leaves"  # fits 40 columns


class ReplyStream:
    """Streams replies to a screen. `interrupt` is the block in which Ctrl-C stops them.

    abandon: called by another thread to end the process if the main thread cannot react to a second Ctrl-C in time.
    """

    def __init__(self, screen: Screen, abandon: Callable[[], None] = lambda: None):
        self._screen = screen
        self._silent_since: float | None = None
        self._texts: Callable[[], list[str]] = list
        self.interrupt = StopOnInterrupt(partial(screen.answer_interrupt, STOPPING), self._show_activity, abandon)

    def wait(self, loading: Loading) -> Loaded:
        """Wait for `loading`, showing its progress, and return what it loaded. Ctrl-C raises WaitStopped."""
        with self._activity(loading.texts):
            return loading.wait(self.interrupt.requested)

    def run(
        self,
        runtime: "OffloadRuntime",
        conversation: "Conversation",
        ids: list[int],
        sampling: SamplingOptions,
        write: Callable[[str], None],
        think: Callable[[str], None] | None = None,
    ) -> "Reply":
        """Generate a reply to the conversation's prompt `ids`, write its text as it comes, return it whole or not.

        think: writes what the model thinks before it answers; None hides it.
        """
        with self._activity(lambda: activity_texts(runtime.progress, self.interrupt.requested())):
            for step in runtime.stream(
                ids,
                end_token_ids=conversation.end_token_ids,
                should_stop=self.interrupt.requested,
                split_reasoning=not conversation.raw,
                **sampling.as_arguments(),
            ):
                if think:
                    think(step.reasoning)
                write(step.text)
                if step.text or think or not step.reasoning:
                    self._silent_since = time.monotonic()
        return runtime.last_reply

    @contextmanager
    def _activity(self, texts: Callable[[], list[str]]) -> Iterator[None]:
        """In the block, show what the machine is doing after a while without other output."""
        self._texts, self._silent_since = texts, time.monotonic()
        try:
            yield
        finally:
            self._silent_since = None
            self._screen.hide_activity()

    def _show_activity(self) -> None:
        since = self._silent_since
        if since is not None and time.monotonic() - since >= SILENCE:
            self._screen.show_activity(self._texts())
