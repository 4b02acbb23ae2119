"""What the names of GGUF files say: which files are one model, what people call it, and how its weights are stored."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from loaders.gguf.types import READABLE, TYPE_NAMES

SUFFIX = ".gguf"
MAX_SPLITS = 1 << 8  # of the largest models there are some 40

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # projectors of images, and what quantizing was guided by
_KIND = re.compile(r"(?:UD-)?(?:(?:IQ|TQ|Q)\d\w*|(?:MX|NV)FP4\w*|BF16|FP?16|FP?32)", re.IGNORECASE)
_AT_END = re.compile(rf"(?:^|[-._])({_KIND.pattern})$", re.IGNORECASE)
_REPACKED = re.compile(r"Q4_0_\d")  # for one kind of processor
_UNREADABLE = ("IQ", "TQ", *(name for name in TYPE_NAMES.values() if name not in READABLE))


def is_model_name(name: str) -> bool:
    """Whether a file of this name may be, or begin, a language model or a part of one."""
    return name.endswith(SUFFIX) and not _NO_MODEL.search(PurePosixPath(name).name) and bool(split_names(name))


def split_names(name: str) -> tuple[str, ...]:
    """All files, in order, of the model that the file `name` is of; none where it counts more than there can be."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return (name,)
    count = int(match[3]) if int(match[3]) <= MAX_SPLITS else 0
    return tuple(f"{match[1]}-{number:05}-of-{match[3]}{SUFFIX}" for number in range(1, count + 1))


def model_stem(name: str) -> str:
    """What people call the model in a file: its name without directory, number of the part and suffix."""
    name = PurePosixPath(name).name
    match = _SPLIT.fullmatch(name)
    return match[1] if match else name.removesuffix(SUFFIX)


def kind_of(stem: str) -> str | None:
    """How weights are stored, by the end of a model's name: "Q4_K_M"; None where it does not say."""
    match = _AT_END.search(stem)
    return match[1] if match else None


def is_kind(text: str) -> bool:
    """Whether this is a whole name of a kind, as "Q4_K_M" is and "K_M" is not."""
    return bool(_KIND.fullmatch(text))


def is_readable_kind(kind: str) -> bool:
    """Whether such weights can be decoded, as far as a name tells; the header tells for certain."""
    kind = kind.upper().removeprefix("UD-")
    return not kind.startswith(_UNREADABLE) and not _REPACKED.match(kind)
