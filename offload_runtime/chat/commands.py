"""What the chat's /commands do."""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.message_text import quoted
from loaders.sizes import format_size
from offload_runtime.chat.given import read_text
from offload_runtime.chat.saved import load_chat, save_chat
from offload_runtime.chat.status import reply_line
from offload_runtime.errors import UsageError
from offload_runtime.grammar.trial import check_response_format
from offload_runtime.options.arguments import THINKING
from offload_runtime.options.sampling_options import SAMPLING
from scheduler.plan.table import format_plan

if TYPE_CHECKING:
    from offload_runtime.chat.session import Chat


@dataclass(frozen=True)
class Command:
    """One command: its arguments, its help, what runs, and whether the argument may have several lines."""

    arguments: str
    help: str
    run: Callable[["Chat", str], None]
    lines: bool = False


def is_command(text: str) -> bool:
    """Whether a text is a command: a slash and one word of letters, or /?. A path is not.

    Several lines are a command only if the first begins with one that takes several lines.
    """
    first, _, rest = text.rstrip().partition("\n")
    return re.fullmatch(r"/([a-zA-Z]+|\?)( .*)?", first) is not None and (not rest or takes_lines(first))


def takes_lines(text: str) -> bool:
    """Whether a text begins with a command whose argument may have several lines."""
    command = _named(text.split(None, 1)[0]) if text.strip() else None
    return command is not None and command.lines


def _named(name: str) -> Command | None:
    return COMMANDS.get(ALIASES.get(name.lower(), name.lower()))


def completions() -> Mapping[str, Iterable[str] | None]:
    """What Tab offers behind each command: words, or None for a path."""
    words: dict[str, Iterable[str] | None] = dict.fromkeys(COMMANDS, ())
    return {
        **words,
        "/set": [f"{name} " for name in SAMPLING],
        "/system": ["none"],
        "/think": THINKING,
        **dict.fromkeys(TAKE_PATHS),
    }


def run_slash_command(chat: "Chat", line: str) -> None:
    """Carry out a command line. Raises UsageError for an unknown command or a wrong argument."""
    name = line.split(None, 1)[0]
    argument = line.strip().removeprefix(name)
    command = _named(name)
    if command is None:
        raise UsageError(f"there is no command {name}; /help lists them (a space before the slash makes it a message)")
    if argument.strip() and not command.arguments:
        raise UsageError(f"{name} stands alone, without {argument.strip()!r}")
    command.run(chat, argument.strip())


def _help(chat: "Chat", argument: str) -> None:
    rows = {f"{name} {command.arguments}": command.help for name, command in COMMANDS.items()}
    rows |= {
        '"""': "begin and end a message of several lines; so does Alt-Enter",
        "Tab": "complete a command or the name of a file",
        "Ctrl-C": "stop the reply and keep what is there; twice: leave",
        "Ctrl-D": "leave",
    }
    chat.screen.say(_rows(chat, rows))


def _rows(chat: "Chat", rows: Mapping[str, object]) -> str:
    """Names and their texts, side by side if the terminal is wide enough."""
    width = chat.screen.console.width if chat.screen.console.is_terminal else 1000
    longest = max(20, *map(len, rows))
    indent = longest + 3 if width > 60 else 4
    lines = []
    for name, text in rows.items():
        beside = f"  {name:<{longest}} " if indent > 4 else f"  {name.strip()}: "
        lines.append(textwrap.fill(str(text), width, initial_indent=beside, subsequent_indent=" " * indent))
    return "\n".join(lines)


def _clear(chat: "Chat", argument: str) -> None:
    chat.conversation.clear()
    stays = "" if chat.conversation.system is None else "; the system message stays"
    chat.screen.note(f"the conversation is empty{stays}")


def _regenerate(chat: "Chat", argument: str) -> None:
    chat.regenerate(chat.sampling.with_value("seed", argument or "default"))


def _system(chat: "Chat", argument: str) -> None:
    if argument:
        chat.system = None if argument == "none" else argument
    chat.screen.say(f"system message: {chat.system or 'none'}")


def _think(chat: "Chat", argument: str) -> None:
    if argument:
        chat.thinking = argument
    chat.screen.say(chat.thinking_note or f"thinking: {chat.thinking}")


def _set(chat: "Chat", argument: str) -> None:
    if not argument:
        chat.screen.say(_sampling_lines(chat))
        return
    name, *rest = re.split(r"\s*=\s*|\s+", argument, maxsplit=1)  # the value may contain "=" too: logit_bias 5=-2
    text = "".join(rest).strip()
    if not text:
        raise UsageError(f"/set {name} needs a value, or default")
    name = name.replace("-", "_")
    sampling = chat.sampling.with_value(name, text)
    if name == "response_format":
        check_response_format(sampling.response_format)
    chat.sampling = sampling
    chat.screen.say(_sampling_lines(chat, name))


def _sampling_lines(chat: "Chat", only: str | None = None) -> str:
    """Every current sampling value, or `only` one, and whether it is the default."""
    rows = {}
    for name, value in chat.sampling.as_arguments().items():
        if only not in (None, name):
            continue
        default = f"{chat.runtime.default_of(name)} (default)" if chat.loaded else "default"
        shown = default if value is None else quoted(str(value))
        rows[name] = f"{shown:<16}  {SAMPLING[name].help}"
    return _rows(chat, rows)


def _stats(chat: "Chat", argument: str) -> None:
    reply = chat.last_reply
    if reply is None:
        chat.screen.say("  no reply yet")
        return
    stats = reply.stats
    rows = {
        "last reply": reply_line(stats, chat.runtime.plan, chat.conversation.token_count),
        "ended by": reply.finish_reason,
        "seed": reply.seed,
        "passes": f"{stats.passes}, {stats.accepted} of {stats.drafted} drafted tokens accepted",
        "time": f"{stats.draft_seconds:.2f} s drafting, {stats.target_seconds:.2f} s in the target",
        "streamed": format_size(stats.streamed_bytes),
        "peak device memory": format_size(stats.peak_device_bytes),
    }
    chat.screen.say(_rows(chat, rows))
    chat.screen.say(_sampling_lines(chat))


def _plan(chat: "Chat", argument: str) -> None:
    chat.screen.say(format_plan(chat.loading.plan, chat.screen.console.width))


def _save(chat: "Chat", argument: str) -> None:
    path = _path(argument, "/save")
    save_chat(path, chat.conversation, chat.sampling)
    chat.screen.note(f"saved {_messages(chat)} to {path}")


def _load(chat: "Chat", argument: str) -> None:
    path = _path(argument, "/load") if argument != LAST else _last(chat)
    chat.sampling = load_chat(path, chat.conversation)
    chat.screen.note(f"loaded {_messages(chat)} from {path}")


def _last(chat: "Chat") -> Path:
    if chat.last is None:
        raise UsageError("no conversation is kept here; a file of that name is ./last")
    if not chat.last.exists():
        raise UsageError("no conversation has been kept yet: that is done when a chat is left")
    return chat.last


def _read(chat: "Chat", argument: str) -> None:
    name, _, question = argument.partition("\n")
    path = _path(name.strip(), "/read")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no file")
    content = read_text(path)
    if not content.strip():
        raise UsageError(f"{path}: is empty")
    chat.answer(f"{question.strip()}\n\n{content}" if question.strip() else content)


def _compact(chat: "Chat", argument: str) -> None:
    chat.room.compact()


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs the name of a file")
    return Path(argument).expanduser()


def _undo(chat: "Chat", argument: str) -> None:
    if not chat.conversation.undo():
        raise UsageError("there is no message to take back")
    chat.screen.note(f"took back the last message and its reply; what is left: {_messages(chat)}")


def _messages(chat: "Chat") -> str:
    count = len(chat.conversation.messages)
    return f"{count} message{'s' * (count != 1)}"


def _bye(chat: "Chat", argument: str) -> None:
    chat.leaving = True


COMMANDS = {
    "/help": Command("", "show this list", _help),
    "/clear": Command("", "begin a new conversation with the same system message", _clear),
    "/regen": Command("[SEED]", "write the last reply again, with a fresh seed or this one", _regenerate),
    "/system": Command("[TEXT|none]", "show, change or remove the system message", _system, lines=True),
    "/think": Command("[show|hide|off]", "show, hide or turn off what the model thinks before it answers", _think),
    "/set": Command("[NAME VALUE]", "show or change how replies are sampled; the value default resets", _set),
    "/stats": Command("", "show what the last reply cost, its seed, and the sampling values", _stats),
    "/plan": Command("", "show the plan: what is in which memory", _plan),
    "/save": Command("FILE", "write the conversation to a file", _save),
    "/load": Command("FILE|last", "go on with a conversation from a file, or the last one", _load),
    "/read": Command("FILE", "send what a text file says; lines below the name go before it", _read, lines=True),
    "/compact": Command("", "drop the oldest turns, to make room in the context", _compact),
    "/undo": Command("", "take back the last message and its reply", _undo),
    "/bye": Command("", "leave", _bye),
}
TAKE_PATHS = ("/save", "/load", "/read")
LAST = "last"
ALIASES = {"/exit": "/bye", "/quit": "/bye", "/?": "/help"}  # as other chats have them
