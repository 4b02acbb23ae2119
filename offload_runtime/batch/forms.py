"""The forms that lines of the input may have. Imports no torch."""

from dataclasses import dataclass

from loaders.json_files import parse_object
from offload_runtime.batch.batch_line import BatchLine, UnreadableLine
from offload_runtime.batch.input_file import MOST_BYTES, InputLine
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.plain_line import PlainLine
from offload_runtime.errors import UsageError
from offload_runtime.options.sampling_options import SamplingOptions


@dataclass(frozen=True)
class Forms:
    """How a job reads its lines. defaults: for sampling values that a line leaves out. chat: prompts are a user's.

    openai: the form in which lines that cannot be read are answered.
    """

    keys: JobKeys
    defaults: SamplingOptions
    chat: bool = False
    openai: bool = False

    def read(self, line: InputLine) -> BatchLine:
        """What the line asks for; never raises for what it holds."""
        key = self.keys.key(line.digest, line.index)
        try:
            if line.text is None:
                raise ValueError(f"it is longer than {MOST_BYTES >> 20} MiB")
            return PlainLine(key, line.index, parse_object(line.text), self.defaults, self.chat)
        except ValueError as error:
            return UnreadableLine(key, line.index, UsageError(str(error)), self.openai)
