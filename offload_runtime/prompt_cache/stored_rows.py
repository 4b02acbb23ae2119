"""One model's rows on disk: which blocks of a text are there, rows into the cache, rows out of it."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import torch

from loaders.message_text import message_text
from offload_runtime.model.allocation import allocate_cache
from offload_runtime.model.model import Model
from offload_runtime.prompt_cache.block_file import (
    Refused,
    Tables,
    can_be_stored,
    nbytes,
    read_rows,
    read_tokens,
    row_bytes,
    write_block,
)
from offload_runtime.prompt_cache.blocks import Block, block_tokens, blocks_of, is_block_name
from offload_runtime.prompt_cache.folder import Folder, entries, mark_used
from offload_runtime.prompt_cache.notes import Notes

Content = TypeVar("Content")

LEAST_READ = 16  # tokens; fewer are not worth a file
MOST_COMPARED = 32  # files of blocks whose tokens are compared with a text's next block
GRACE_SECONDS = 1.0  # that reading from disk may take longer than reading through the model


@dataclass(frozen=True)
class _Piece:
    """A file that holds the rows of a text from `begin` to `end`, and perhaps of others after them."""

    path: Path
    begin: int
    end: int


class StoredRows:
    """seconds_per_token: what reading a prompt through the model takes; None: always more than from disk."""

    def __init__(self, model: Model, identity: str, folder: Folder, seconds_per_token: float | None, notes: Notes):
        self.model = model
        self._identity, self._folder, self._notes = identity, folder, notes
        self._own = folder.of_model(identity)
        self._seconds_per_token = seconds_per_token
        self._refused: set[Path] = set()

    @cached_property
    def _block_tokens(self) -> int:
        return block_tokens(row_bytes(self._tables()))

    def _tables(self) -> Tables:
        """The rows of the cache, which are allocated for it if no pass has run."""
        allocate_cache(self.model)
        return self.model.cache.tables()

    @property
    def nothing_stored(self) -> bool:
        """Whether there can be no rows of this model."""
        return self._own.is_symlink() or not self._own.is_dir()

    def loading(self, text: Sequence[int], number: int, most: int, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Make sequence `number`, which begins like `text`, longer by what is stored; at most `most` tokens long.

        Yields after every file. Ends early where that would take longer than reading the rest through the model.
        """
        sequence = self.model.cache.sequences[number]
        most = min(most, self.model.fixed_rows)
        if most - sequence.length < LEAST_READ or self.nothing_stored:
            return
        self._tables()  # allocates them before time is taken: gigabytes take seconds, which are no sign of a slow disk
        used: list[Path] = []
        first, seconds, began = sequence.length, 0.0, time.perf_counter()
        try:
            for piece in self._pieces(text[:most], sequence.length):
                seconds += time.perf_counter() - began
                if should_stop() or self._is_slow(seconds, sequence.length - first):
                    break
                began = time.perf_counter()
                if piece.end > sequence.length and not self._read(piece, number):
                    break
                used.append(piece.path)
                seconds += time.perf_counter() - began
                yield
                began = time.perf_counter()
        finally:
            mark_used(used, time.time_ns())

    def missing(self, text: Sequence[int], number: int) -> list[Block]:
        """The blocks of a text whose rows sequence `number` holds and no file does; notes that the others were used."""
        count = min(len(text), self.model.cache.sequences[number].length, self.model.fixed_rows)
        if not can_be_stored(self._tables()):
            return []
        blocks = [*blocks_of(text[:count], self._block_tokens, self._identity)]
        mark_used((self._path(block) for block in blocks), time.time_ns())
        return [block for block in blocks if len(block.tokens) >= LEAST_READ and not self._has(block)]

    @torch.inference_mode()
    def take(self, block: Block, number: int) -> Tables | None:
        """A copy on the host of a block's rows in sequence `number`; None if those are gone, or a file has them."""
        sequence = self.model.cache.sequences[number]
        if block.end > min(sequence.length, self.model.fixed_rows) or self._has(block):
            return None
        begin, end = sequence.first_row + block.begin, sequence.first_row + block.end
        return {
            name: torch.empty_like(table[:, begin:end], device="cpu", memory_format=torch.contiguous_format).copy_(
                table[:, begin:end]
            )
            for name, table in self._tables().items()
        }

    def write(self, block: Block, rows: Tables, when: int) -> bool:
        """Store a block, for a text that was used at `when`; False if the cache has no room for it. Raises OSError."""
        path, used = self._path(block), when - block.begin
        if self._own.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self._own))
        if not self._folder.make_room(nbytes(rows, len(block.tokens)), used):
            return False
        self._own.mkdir(mode=0o700, exist_ok=True)
        write_block(path, block, rows)
        mark_used([path], used)
        self._refused.discard(path)
        self._remove_beginnings(block)
        return True

    def _remove_beginnings(self, block: Block) -> None:
        """Remove the files that hold less of the block just written: the end of the text when it was shorter."""
        for path in self._after(block.parent):
            tokens = self._tokens_of(path)
            if 0 < len(tokens) < len(block.tokens) and block.tokens[: len(tokens)] == tokens:
                self._folder.remove(path)

    def _pieces(self, text: Sequence[int], known: int) -> Iterator[_Piece]:
        """The files that hold the rows of a text, in order, as far as they go; those of its first `known` unchecked."""
        parent, begin = self._identity, 0
        for block in blocks_of(text, self._block_tokens, self._identity):
            if len(block.tokens) < self._block_tokens or (block.end > known and not self._has(block)):
                break
            yield _Piece(self._path(block), block.begin, block.end)
            parent, begin = block.digest, block.end
        last = self._longest(parent, tuple(text[begin : begin + self._block_tokens]))
        if last is not None:
            path, count = last
            yield _Piece(path, begin, begin + count)

    def _longest(self, parent: str, tokens: tuple[int, ...]) -> tuple[Path, int] | None:
        """The file after `parent` that begins most like `tokens`, and how many of them it has."""
        best: tuple[Path, int] | None = None
        for path in self._after(parent):
            stored = self._tokens_of(path)
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(stored, tokens)))
            if common >= LEAST_READ and (best is None or common > best[1]):
                best = path, common
        return best

    def _after(self, parent: str) -> list[Path]:
        """Files of blocks that follow `parent`, those used last first."""
        found = []
        for entry in entries(self._own):
            path = self._own / entry.name
            if entry.name.startswith(parent) and is_block_name(entry.name) and path not in self._refused:
                with suppress(OSError):  # removed meanwhile
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)[:MOST_COMPARED]]

    def _read(self, piece: _Piece, number: int) -> bool:
        """Put a file's rows behind those of sequence `number`; False if it is not what it should be."""
        rows = self._trusted(piece.path, read_rows)
        if rows is None:
            return False
        sequence = self.model.cache.sequences[number]
        begin = sequence.length
        with torch.inference_mode():
            for name, table in self._tables().items():
                into = table[:, sequence.first_row + begin : sequence.first_row + piece.end]
                into.copy_(rows[name][:, begin - piece.begin : piece.end - piece.begin])
        sequence.extend_to(piece.end)
        return True

    def _tokens_of(self, path: Path) -> tuple[int, ...]:
        """The tokens of a file; none if it is not what it should be."""
        return self._trusted(path, read_tokens) or ()

    def _trusted(self, path: Path, read: Callable[[Path, Tables], Content]) -> Content | None:
        """What a file holds; None, which is said, if it is not what it should be."""
        try:
            return read(path, self._tables())
        except FileNotFoundError:  # removed meanwhile
            return None
        except (OSError, Refused) as error:
            reason = error.strerror if isinstance(error, OSError) else error
        self._refused.add(path)
        self._notes.say("file", message_text(f"{path} is left out, and so is any other like it: {reason}"))
        return None

    def _has(self, block: Block) -> bool:
        path = self._path(block)
        return path not in self._refused and path.exists()

    def _path(self, block: Block) -> Path:
        return self._own / block.file_name

    def _is_slow(self, seconds: float, tokens: int) -> bool:
        """Whether reading so many tokens has taken longer than it would have through the model."""
        return self._seconds_per_token is not None and seconds > GRACE_SECONDS + tokens * self._seconds_per_token
