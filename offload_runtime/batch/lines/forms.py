"""The forms that lines of the input may have. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loaders.json_files import parse_object
from offload_runtime.batch.input_file import MOST_BYTES, InputLine
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.lines.batch_line import BatchLine, UnreadableLine
from offload_runtime.batch.lines.openai_line import NAMES, OpenAILine
from offload_runtime.batch.lines.plain_line import PlainLine
from offload_runtime.errors import UsageError
from offload_runtime.options.sampling_options import SamplingOptions
from offload_runtime.serve.api.asked import MOST_TEXTS, Offer
from offload_runtime.serve.api.token_texts import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _no_tokenizer() -> "PreTrainedTokenizerBase":
    raise AssertionError("lines are answered where a model is loaded")


@dataclass(frozen=True)
class Forms:
    """How a job reads and answers its lines.

    defaults: for sampling values that a line leaves out. model: its name in answers to lines that name none. chat:
    plain prompts are a user's messages. openai: the form in which lines that cannot be read are answered. token_texts:
    of the loaded model.
    """

    keys: JobKeys
    defaults: SamplingOptions
    model: str = ""
    chat: bool = False
    openai: bool = False
    token_texts: TokenTexts = field(default_factory=lambda: TokenTexts(_no_tokenizer))

    def read(self, line: InputLine) -> BatchLine:
        """What the line asks for; never raises for what it holds."""
        key = self.keys.key(line.digest, line.index)
        try:
            if line.text is None:
                raise ValueError(f"it is longer than {MOST_BYTES >> 20} MiB")
            fields = parse_object(line.text)
        except ValueError as error:
            return UnreadableLine(key, line.index, UsageError(str(error)), self.openai)
        defaults = {name: value for name, value in self.defaults.as_arguments().items() if value is not None}
        if any(name in fields for name in NAMES):
            offer = Offer(self.model, True, MOST_TEXTS, self.token_texts)
            return OpenAILine(key, line.index, fields, defaults, offer)
        return PlainLine(key, line.index, fields, defaults, self.chat)

    def answered_as(self, line: BatchLine) -> "Forms":
        """The same, with lines that cannot be read answered in the form of this one."""
        return replace(self, openai=isinstance(line, OpenAILine))

    def with_tokenizer(self, tokenizer: "Callable[[], PreTrainedTokenizerBase]") -> "Forms":
        """The same, where the model is loaded."""
        return replace(self, token_texts=TokenTexts(tokenizer))
