"""A text as a chain of blocks of equal length. Each is named by all tokens up to its end, so texts that begin alike
share the blocks of what they have in common. Imports no torch."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DIGEST = 40  # hexadecimal digits of a SHA-256, 160 bits
_NAME = re.compile(rf"[0-9a-f]{{{DIGEST}}}-[0-9a-f]{{{DIGEST}}}\.safetensors")
MOST_TOKENS = 256
LEAST_TOKENS = 16  # where a token's rows are so large that more would not be written at once
MOST_BYTES = 32 << 20  # of the rows of a block, which lie in host memory while they are written or read


@dataclass(frozen=True)
class Block:
    """Tokens ``[begin, end)`` of a text. parent: the digest of all that comes before."""

    parent: str
    begin: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)

    @cached_property
    def digest(self) -> str:
        """Of the text through `end`, and of the model that read it."""
        return digest(self.parent.encode() + np.array(self.tokens, "<i8").tobytes())

    @property
    def file_name(self) -> str:
        return f"{self.parent}-{self.digest}.safetensors"


def digest(content: bytes) -> str:
    """The name of some content."""
    return hashlib.sha256(content).hexdigest()[:DIGEST]


def block_tokens(bytes_per_token: int) -> int:
    """Tokens in a full block of a model whose KV rows of one token take so many bytes."""
    count = MOST_TOKENS
    while count > LEAST_TOKENS and count * bytes_per_token > MOST_BYTES:
        count //= 2
    return count


def blocks_of(text: Sequence[int], size: int, root: str) -> Iterator[Block]:
    """The blocks of `size` tokens of a text; the last may be shorter. root: the parent of the first."""
    parent = root
    for begin in range(0, len(text), size):
        block = Block(parent, begin, tuple(text[begin : begin + size]))
        yield block
        parent = block.digest


def is_block_name(name: str) -> bool:
    """Whether this is the name of a block's file."""
    return _NAME.fullmatch(name) is not None
