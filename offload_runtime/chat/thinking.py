"""Whether thoughts are shown, hidden or turned off."""

from typing import TYPE_CHECKING

from offload_runtime.errors import UsageError
from offload_runtime.options.arguments import THINKING
from offload_runtime.text.reasoning_switch import without_thinking

if TYPE_CHECKING:
    from offload_runtime.text.conversation import Conversation

NO_SWITCH = "the model's chat template has no switch for thinking: what the model thinks is hidden"


def check_mode(mode: str) -> None:
    """Raise UsageError for an unknown mode."""
    if mode not in THINKING:
        raise UsageError(f"thinking {mode!r} is none of {', '.join(THINKING)}")


class Thinking:
    """How a conversation treats its model's thoughts. Template arguments given by the user take precedence."""

    def __init__(self, conversation: "Conversation", mode: str = "show"):
        self.mode = mode
        self._conversation = conversation
        self._given = dict(conversation.template_arguments)
        self.set(mode)

    @property
    def is_shown(self) -> bool:
        return self.mode == "show"

    @property
    def note(self) -> str | None:
        """A note for the user, if the model cannot do what the mode asks for."""
        return NO_SWITCH if self.mode == "off" and not self._off and not self._conversation.raw else None

    @property
    def _off(self) -> dict[str, object]:
        return without_thinking(str(self._conversation.tokenizer.chat_template or ""))

    def set(self, mode: str) -> None:
        """Change the mode. Raises UsageError for an unknown one."""
        check_mode(mode)
        self.mode = mode
        self._conversation.template_arguments = {**(self._off if mode == "off" else {}), **self._given}
