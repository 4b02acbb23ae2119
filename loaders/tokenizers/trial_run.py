"""A program that tries a tokenizer's file and may hang or crash: encodes texts on which bad rules explode.

Its arguments are the file and the seconds of CPU time for a small one; each MB of a file adds one. It exits with 0 if
the file is fine, else prints the problem in one line and exits with 1. Imports nothing of the project.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

MOST_TOKENS_PER_BYTE = 64
MEMORY = 2 << 30, 64  # bytes of address space, and more for each byte of the file
_CHARACTERS = "aA0é中 \t\n\r!-_.'\u00a0\u0301😀"
_FAILS = "fails on texts of a few thousand characters"
_TEXTS = ("Hello, world! It's 12:30.\n\n  def f(x):\n\treturn x  # größer\n", "中文 и русский, عربى 日本語 한국어", "")


def texts(letters: Iterable[str]) -> Iterator[str]:
    """Ordinary text, and for each letter a short and a long run of it that ends in another character."""
    yield from _TEXTS
    for letter in letters:
        yield letter * 30 + "!"
        yield letter * 30 + "\ufffd" + letter * 2000 + "x"


def letters_of(rules: Any) -> str:
    """The characters above, and those in the rules' patterns and replacements."""
    stated = set(re.findall(r"\w", json.dumps(rules, ensure_ascii=False)[:20_000]))
    found = [letter for letter in sorted(stated) if letter.isprintable() and letter not in _CHARACTERS]
    return _CHARACTERS + "".join(found[:64])


def try_tokenizer(file: Path) -> str | None:
    """The problem with the tokenizer in `file`."""
    record = json.loads(file.read_bytes())
    if "config" in record and "model" not in record:  # Mistral's tekken.json, whose pattern transformers uses
        pattern = record["config"].get("pattern", "")
        split = Split(Regex(pattern), "isolated")
        for text in texts(letters_of(pattern)):
            split.pre_tokenize_str(text)
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except BaseException as error:  # a panic of the library is not an Exception
        return f"cannot be loaded: {_first_line(error)}"
    rules = [record.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    for text in texts(letters_of(rules)):
        ids = tokenizer.encode(text).ids
        if len(ids) > MOST_TOKENS_PER_BYTE * (len(text.encode()) + 8):
            return f"{_FAILS}: one of {len(text)} characters becomes {len(ids):,} tokens"
        tokenizer.decode(ids)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> int:
    nbytes = Path(sys.argv[1]).stat().st_size
    memory, seconds = MEMORY[0] + MEMORY[1] * nbytes, int(sys.argv[2]) + (nbytes >> 20)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        fault = try_tokenizer(Path(sys.argv[1]))
    except BaseException as error:
        fault = f"{_FAILS}: {_first_line(error)}"
    if fault:
        print(fault[:300])
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
