"""Chats as JSON files: messages, their token ids and the sampling values. Every value is checked when read."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.cache_directory import replace_whole
from loaders.json_files import read_object
from offload_runtime.errors import UsageError
from offload_runtime.options.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from offload_runtime.text.conversation import Conversation, Message, Stretch

FORMAT = "offload_runtime chat, version 1"
ROLES = ("system", "user", "assistant")
KEPT = ("role", "content", "reasoning_content")


@dataclass(frozen=True)
class SavedChat:
    """The content of a file. `tokens` identifies the vocabulary: ids mean nothing under another one."""

    raw: bool
    tokens: str
    messages: "list[Message]"
    stretches: "list[Stretch]"
    sampling: SamplingOptions


def save_chat(path: Path, conversation: "Conversation", sampling: SamplingOptions) -> None:
    """Write a chat, all or nothing. Raises UsageError if it cannot, or if `path` is a file other than a saved chat."""
    _refuse_to_overwrite(path)
    keep_chat(path, conversation, sampling)


def keep_chat(path: Path, conversation: "Conversation", sampling: SamplingOptions) -> None:
    """Write a chat up to its last reply, over any existing file. Raises UsageError if it cannot."""
    messages = conversation.messages
    content = {
        "format": FORMAT,
        "raw": conversation.raw,
        "tokens": tokens_fingerprint(conversation.tokenizer),
        "messages": messages[:-1] if messages and messages[-1]["role"] == "user" else messages,
        "stretches": [{"text": stretch.text, "ids": stretch.ids} for stretch in conversation.stretches],
        "sampling": sampling.as_arguments(),
    }
    try:
        replace_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def _refuse_to_overwrite(path: Path) -> None:
    """Raise UsageError if `path` exists and is not a saved chat."""
    if not path.exists():
        return
    try:
        _read_json(path)
    except UsageError as error:
        raise UsageError(f"{error}\n  it is left as it is: only saved chats are overwritten") from error


def load_chat(path: Path, conversation: "Conversation") -> SamplingOptions:
    """Make `conversation` the one in the file; return its sampling values.

    With another vocabulary only the text is used. Raises UsageError, and leaves `conversation` unchanged, for a file
    that is missing, damaged, or of the other kind (with or without the chat template).
    """
    saved = _parse(path, _read_json(path))
    if saved.raw != conversation.raw:
        kinds = "without the chat template (--raw)", "with the chat template (no --raw)"
        raise UsageError(f"{path}: this chat was held {kinds[0 if saved.raw else 1]} and can only go on so")
    conversation.restore((saved.messages, saved.stretches if _same_tokens(saved, conversation.tokenizer) else []))
    return saved.sampling


def _same_tokens(saved: SavedChat, tokenizer: "PreTrainedTokenizerBase") -> bool:
    largest = max((token for stretch in saved.stretches for token in stretch.ids), default=0)
    return largest < len(tokenizer) and saved.tokens == tokens_fingerprint(tokenizer)


def tokens_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A digest of the vocabulary: tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no file")
    try:
        content = read_object(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not a saved chat ({error})") from error
    if content.get("format") != FORMAT:
        raise UsageError(f"{path}: is not a saved chat of this version")
    return content


def _parse(path: Path, content: dict[str, Any]) -> SavedChat:
    """Check every value. Raises UsageError that names the first wrong one."""

    def check(right: bool, what: str) -> None:
        if not right:
            raise UsageError(f"{path}: is damaged: {what}")

    from offload_runtime.text.conversation import Stretch

    messages: Any = content.get("messages")
    stretches: Any = content.get("stretches")
    sampling: Any = content.get("sampling")
    check(isinstance(content.get("raw"), bool), '"raw" is neither true nor false')
    check(isinstance(content.get("tokens"), str), '"tokens" is no text')
    check(isinstance(messages, list) and all(map(_is_message, messages)), '"messages" is no list of messages')
    check(_roles_alternate(messages), "the messages are not a question and a reply in turn")
    check(isinstance(stretches, list) and all(map(_is_stretch, stretches)), '"stretches" is no list of texts and ids')
    check(isinstance(sampling, dict), '"sampling" is no table of values')
    try:
        values = SamplingOptions.from_mapping(sampling)
    except UsageError as error:
        raise UsageError(f"{path}: is damaged: {error}") from error
    return SavedChat(
        raw=content["raw"],
        tokens=content["tokens"],
        messages=[{name: message[name] for name in KEPT if name in message} for message in messages],
        stretches=[Stretch(stretch["text"], tuple(stretch["ids"])) for stretch in stretches],
        sampling=values,
    )


def _is_text(value: Any) -> bool:
    """Whether a JSON value is text that can be encoded: JSON's escapes can spell lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_message(value: Any) -> bool:
    texts = (value.get("content"), value.get("reasoning_content", "")) if isinstance(value, dict) else ()
    return bool(texts) and value.get("role") in ROLES and all(map(_is_text, texts))


def _roles_alternate(messages: "list[Message]") -> bool:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return turns == ["user", "assistant"] * (len(turns) // 2)


def _is_stretch(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_text(value.get("text")) or not isinstance(value.get("ids"), list):
        return False
    return all(type(token) is int and token >= 0 for token in value["ids"])
