"""A text that is being written: the request, its state in the decoder, and the reply so far."""

from offload_runtime.errors import OffloadError
from offload_runtime.generation.decode import Decoder, Step
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.generation.reply import Reply, with_text
from offload_runtime.generation.writer import Request, Writer
from offload_runtime.text.reply_text import ReplyText


class RunningText:
    """What `OffloadRuntime.stream` and `SharedPasses` keep of one text.

    request: as it was given. reply: grows step by step. error: what ended this text alone; None while there is none.
    """

    def __init__(self, request: GenerationRequest, decoding: Request, text: ReplyText | None, reply: Reply):
        self.request, self.reply = request, reply
        self.error: OffloadError | None = None
        self._decoding, self._text = decoding, text
        self._state: tuple[Decoder, Writer] | None = None

    @property
    def done(self) -> bool:
        """Whether the last step was made, or an error has ended the text."""
        return self.error is not None or self.reply.finish_reason is not None

    def writer(self, decoder: Decoder) -> Writer:
        """The state of the text in this decoder; after the models were loaded anew, it goes on from its last token."""
        if self._state is None or self._state[0] is not decoder:
            self._state = decoder, Writer(self._decoding.after(self.reply.token_ids))
        return self._state[1]

    def take(self, step: Step, peak_device_bytes: int) -> Step:
        """Add a step of the decoder to the reply; return it with its text."""
        step = with_text(step, self._text) if self._text else step
        self.reply.add(step)
        self.reply.stats.peak_device_bytes = peak_device_bytes
        return step

    def end(self) -> None:
        """End the text where it is, unless it is done, and let others have its rows in the caches."""
        if self._state is not None:
            decoder, writer = self._state
            decoder.leave(writer)
        self.reply.finish_reason = self.reply.finish_reason or "interrupted"
