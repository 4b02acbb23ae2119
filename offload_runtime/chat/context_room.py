"""Room in the context: warns before it runs out, and makes room by dropping the oldest turns."""

from typing import TYPE_CHECKING

from offload_runtime.chat.terminal.screen import Screen

if TYPE_CHECKING:
    from offload_runtime.text.conversation import Conversation, Message

MAKE_ROOM = (
    "/undo takes back the last message and its reply, /compact drops the oldest turns, /clear begins a new conversation"
)
NEARLY_FULL = 0.75  # of the context: said once, until there is room again
LEFT_FOR_REPLY = 4  # turns are dropped until a reply has at least a quarter of the context
LITTLE_ROOM = 20  # warn before a reply that has less than a twentieth of the context
COMPACT = 2  # /compact drops turns until half of the context is free
EXCERPT = 40  # characters shown of a dropped message


class ContextRoom:
    """Tracks how full the context of `context_length` tokens is. overflow: "stop" or "drop"."""

    def __init__(self, conversation: "Conversation", context_length: int, overflow: str, screen: Screen):
        self._conversation, self._length, self._drops = conversation, context_length, overflow == "drop"
        self._screen = screen
        self._warned = False

    def before_reply(self, ids: list[int], max_new_tokens: int | None) -> list[int]:
        """The prompt for a reply: `ids`, or fewer if the oldest turns had to be dropped."""
        room = self._length // LEFT_FOR_REPLY
        needed = min(room, max_new_tokens or room)
        if self._drops and self._length - len(ids) < needed:
            dropped: list[Message] = []
            before = len(ids)
            while self._length - len(ids) < needed and (turn := self._conversation.drop_oldest()):
                dropped += turn
                ids = self._conversation.prompt_ids()
            if dropped:
                self._say_dropped(dropped, before - len(ids))
        left = self._length - len(ids)
        if 0 < left < min(needed, self._length // LITTLE_ROOM):
            self._screen.say(f"{_tokens(left)} left for the reply: {MAKE_ROOM}")
        return ids

    def after_reply(self, tokens: int) -> bool:
        """Warn if `tokens` in the context leave little room; True if they leave none."""
        if tokens >= self._length:
            next_time = "the next message drops the oldest turns" if self._drops else MAKE_ROOM
            self._screen.say(f"The context is full ({self._length} tokens): {next_time}")
            return True
        nearly = tokens >= NEARLY_FULL * self._length
        if nearly and not self._warned:
            then = "then the oldest turns go" if self._drops else f"then replies end early. {MAKE_ROOM}"
            left = _tokens(self._length - tokens)
            self._screen.say(f"The context is {tokens / self._length:.0%} full, {left} left: {then}")
        self._warned = nearly
        return False

    def compact(self) -> None:
        """Drop turns, oldest first, until half of the context is free; keeps the system message and the newest turn."""
        dropped: list[Message] = []
        before = self._conversation.token_count
        while turn := self._conversation.drop_oldest():
            dropped += turn
            if self._conversation.token_count <= self._length // COMPACT:
                break
        if dropped:
            self._say_dropped(dropped, before - self._conversation.token_count)
            self._warned = False
        else:
            self._screen.say("there is no older turn to drop; /clear begins a new conversation")

    def _say_dropped(self, dropped: "list[Message]", tokens: int) -> None:
        asked = [message["content"] for message in dropped if message["role"] == "user"]
        shown = ", ".join(f'"{_excerpt(text)}"' for text in asked[:3]) + (", …" if len(asked) > 3 else "")
        turns = "the oldest turn" if len(asked) == 1 else f"the {len(asked)} oldest turns"
        self._screen.say(f"dropped {turns}, {_tokens(tokens)}: {shown}")


def _tokens(count: int) -> str:
    return f"{count:,} token{'s' * (count != 1)}"


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
