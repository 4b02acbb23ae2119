"""Which tokens of a GGUF file are matched in text before it is split, and which of them are special."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken

from loaders.gguf.vocabulary import MESSAGE_END, replies_in_messages
from loaders.message_text import quoted

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

# End-of-text and end-of-turn tokens, which llama.cpp knows by name (src/llama-vocab.cpp) whatever their stated type.
ENDS = frozenset({"</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"})
ENDS |= {"<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]"}
ENDS |= {"<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_utterance>"}
_MARK = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{1,64}\]")


def found_first(tokens: Sequence[str], kinds: Sequence[int], keep_spaces: frozenset[str] | None) -> list[AddedToken]:
    """The tokens matched in text first. keep_spaces: if given, all other tokens swallow the spaces after them."""
    return [
        AddedToken(
            token,
            normalized=False,
            special=kind != USER_DEFINED,
            rstrip=keep_spaces is not None and token not in keep_spaces,
        )
        for token, kind in zip(tokens, _as_named(tokens, kinds), strict=False)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def warn_of_split_marks(file: Path, tokens: Mapping[str, int], kinds: Sequence[int], template: str) -> None:
    """Name the chat template's marks that the file lists as ordinary text tokens."""
    marks = [mark for mark in dict.fromkeys(_MARK.findall(template)) if tokens.get(mark, len(kinds)) < len(kinds)]
    plain = [mark for mark in marks if kinds[tokens[mark]] == NORMAL]
    split = [mark for mark in plain if mark not in ENDS]
    if plain:
        outcome = f"{_listed(split)} would be split into pieces, so the model may not see where turns begin."
        warnings.warn(
            f"{quoted(str(file), 200)}: of its chat template's marks, {_listed(plain)} are stored as normal tokens. "
            f"{outcome if split else 'They are taken for the ends that they name.'} A file that was converted anew "
            "has them as control tokens.",
            stacklevel=2,
        )


def _listed(marks: list[str]) -> str:
    return ", ".join(map(quoted, marks[:8])) + ", …" * (len(marks) > 8)


def _as_named(tokens: Sequence[str], kinds: Sequence[int]) -> list[int]:
    kinds = kinds or [NORMAL] * len(tokens)
    ends = ENDS - {"</s>"} if "<|tool_response>" in tokens else ENDS  # Gemma 4's </s> is text
    if replies_in_messages(tokens):
        ends -= {MESSAGE_END}
    return [CONTROL if token in ends else kind for token, kind in zip(tokens, kinds, strict=False)]
