"""What GGUF file names say: which files are one model, its display name, and how its weights are stored."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from loaders.gguf.types import READABLE, TYPE_NAMES

SUFFIX = ".gguf"
MAX_SPLITS = 1 << 8  # the largest models have about 40

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # image projectors and importance matrices
_KIND = re.compile(r"(?:UD-)?(?:(?:IQ|TQ|Q)\d\w*|(?:MX|NV)FP4\w*|BF16|FP?16|FP?32)", re.IGNORECASE)
_AT_END = re.compile(rf"(?:^|[-._])({_KIND.pattern})$", re.IGNORECASE)
_REPACKED = re.compile(r"Q4_0_\d")  # repacked for one kind of processor
_UNREADABLE = tuple(name for name in TYPE_NAMES.values() if name not in READABLE)
_OF_A_FORK = re.compile(r"IQ\d_K|TQ[^12]|IQ[^1-4]")  # kinds of ik_llama.cpp and others, which ggml does not have


def is_model_name(name: str) -> bool:
    """Whether a file of this name may be a language model, or a part of one."""
    return name.endswith(SUFFIX) and not _NO_MODEL.search(PurePosixPath(name).name) and bool(split_names(name))


def split_names(name: str) -> tuple[str, ...]:
    """All files, in order, of the model that file `name` belongs to; empty if the name states too many parts."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return (name,)
    count = int(match[3]) if int(match[3]) <= MAX_SPLITS else 0
    return tuple(f"{match[1]}-{number:05}-of-{match[3]}{SUFFIX}" for number in range(1, count + 1))


def model_stem(name: str) -> str:
    """The display name of the model in a file: the file name without directory, part number and suffix."""
    name = PurePosixPath(name).name
    match = _SPLIT.fullmatch(name)
    return match[1] if match else name.removesuffix(SUFFIX)


def kind_of(stem: str) -> str | None:
    """The quantization at the end of a model's name: "Q4_K_M"; None if there is none."""
    match = _AT_END.search(stem)
    return match[1] if match else None


def is_kind(text: str) -> bool:
    """Whether this is a whole quantization name: "Q4_K_M" is, "K_M" is not."""
    return bool(_KIND.fullmatch(text))


def is_readable_kind(kind: str) -> bool:
    """Whether such weights can be dequantized, as far as the name tells; only the header is certain."""
    kind = kind.upper().removeprefix("UD-")
    return not (kind.startswith(_UNREADABLE) or _REPACKED.match(kind) or _OF_A_FORK.match(kind))
