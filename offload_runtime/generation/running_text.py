"""A text that is being written: the request, the decoder's steps, and the reply so far."""

from collections.abc import Generator

from offload_runtime.errors import OffloadError
from offload_runtime.generation.decode import Request, Step
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.generation.reply import Reply, with_text
from offload_runtime.text.reply_text import ReplyText


class RunningText:
    """What `OffloadRuntime.stream` and `SharedPasses` keep of one text.

    request: as it was given. reply: grows step by step. error: what ended this text alone; None while there is none.
    """

    def __init__(self, request: GenerationRequest, decoding: Request, text: ReplyText | None, reply: Reply):
        self.request, self.decoding, self.reply = request, decoding, reply
        self.error: OffloadError | None = None
        self.steps: Generator[Step, None, None] | None = None
        self._text = text

    @property
    def done(self) -> bool:
        """Whether the last step was made, or an error has ended the text."""
        return self.error is not None or self.reply.finish_reason is not None

    def take(self, step: Step, peak_device_bytes: int) -> Step:
        """Add a step of the decoder to the reply; return it with its text."""
        step = with_text(step, self._text) if self._text else step
        self.reply.add(step)
        self.reply.stats.peak_device_bytes = peak_device_bytes
        return step

    def end(self) -> None:
        """End the text where it is, unless it is done."""
        self.reply.finish_reason = self.reply.finish_reason or "interrupted"
