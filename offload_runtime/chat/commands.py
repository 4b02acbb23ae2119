"""What the chat's /commands do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offload_runtime.chat.saved import load_chat, save_chat
from offload_runtime.chat.status import reply_line
from offload_runtime.errors import UsageError
from offload_runtime.options import SAMPLING
from scheduler.plan_table import format_plan
from scheduler.sizes import format_size

if TYPE_CHECKING:
    from offload_runtime.chat.session import Chat


@dataclass(frozen=True)
class Command:
    """One command: how it is written, what it does."""

    arguments: str
    help: str
    run: Callable[["Chat", str], None]


def is_command(line: str) -> bool:
    """Whether a line is meant as a command: a slash and one word of letters, or /?. Paths and several lines are not."""
    return re.fullmatch(r"/([a-zA-Z]+|\?)( .*)?", line.rstrip()) is not None


def run_command(chat: "Chat", line: str) -> None:
    """Carry out a command line. Raises UsageError for an unknown command or a wrong argument."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(ALIASES.get(name.lower(), name.lower()))
    if command is None:
        raise UsageError(f"there is no command {name}; /help lists them (a space before the slash makes it a message)")
    if argument.strip() and not command.arguments:
        raise UsageError(f"{name} stands alone, without {argument.strip()!r}")
    command.run(chat, argument.strip())


def _help(chat: "Chat", argument: str) -> None:
    rows = [(f"{name} {command.arguments}", command.help) for name, command in COMMANDS.items()]
    rows += [
        ('"""', "begin and end a message of several lines (so does Alt-Enter)"),
        ("Ctrl-C", "stop the reply and keep what is there; twice: leave"),
        ("Ctrl-D", "leave"),
    ]
    chat.screen.say("\n".join(f"  {left:<20} {right}" for left, right in rows))


def _clear(chat: "Chat", argument: str) -> None:
    chat.conversation.clear()
    stays = "" if chat.conversation.system is None else "; the system message stays"
    chat.screen.note(f"the conversation is empty{stays}")


def _regenerate(chat: "Chat", argument: str) -> None:
    chat.regenerate(chat.sampling.with_value("seed", argument or "default"))


def _system(chat: "Chat", argument: str) -> None:
    if argument:
        chat.conversation.set_system(None if argument == "none" else argument)
    chat.screen.say(f"system message: {chat.conversation.system or 'none'}")


def _set(chat: "Chat", argument: str) -> None:
    if not argument:
        chat.screen.say(_sampling_lines(chat))
        return
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    if not text.strip():
        raise UsageError(f"/set {name} needs a value, or default")
    name = name.replace("-", "_")
    chat.sampling = chat.sampling.with_value(name, text.strip())
    chat.screen.say(_sampling_lines(chat, name))


def _sampling_lines(chat: "Chat", only: str | None = None) -> str:
    """Every sampling value in force or `only` one, and where it comes from."""
    lines = []
    for name, value in chat.sampling.as_arguments().items():
        if only not in (None, name):
            continue
        default = getattr(chat.runtime.generation_defaults, name, {"seed": "fresh"}.get(name, "none"))
        lines.append(f"  {name:<20} {f'{default} (default)' if value is None else value:<16}  {SAMPLING[name].help}")
    return "\n".join(lines)


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
    chat.screen.say("\n".join(f"  {name:<20} {value}" for name, value in rows.items()))
    chat.screen.say(_sampling_lines(chat))


def _plan(chat: "Chat", argument: str) -> None:
    chat.screen.say(format_plan(chat.runtime.plan))


def _save(chat: "Chat", argument: str) -> None:
    path = _path(argument, "/save")
    save_chat(path, chat.conversation, chat.sampling)
    chat.screen.note(f"saved {_messages(chat)} to {path}")


def _load(chat: "Chat", argument: str) -> None:
    path = _path(argument, "/load")
    chat.sampling = load_chat(path, chat.conversation)
    chat.screen.note(f"loaded {_messages(chat)} from {path}")


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
    "/system": Command("[TEXT|none]", "show, change or remove the system message", _system),
    "/set": Command("[NAME VALUE]", "show or change how replies are sampled; the value default resets", _set),
    "/stats": Command("", "show what the last reply cost, its seed, and the sampling values", _stats),
    "/plan": Command("", "show what lies where", _plan),
    "/save": Command("FILE", "write the conversation to a file", _save),
    "/load": Command("FILE", "go on with a conversation from a file", _load),
    "/undo": Command("", "take back the last message and its reply", _undo),
    "/bye": Command("", "leave", _bye),
}
ALIASES = {"/exit": "/bye", "/quit": "/bye", "/?": "/help"}  # as other chats have them
