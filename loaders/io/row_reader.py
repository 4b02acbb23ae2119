"""Reads single rows of tables that are too large for memory, and of which a pass needs few (n-grams of tokens)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loaders.errors import ModelFilesError
from loaders.io.direct import DISK_BLOCK, FileTable, Workers
from loaders.safetensors_files.headers import StoredTensor

THREADS = 16  # a disk answers many small reads at once
_ROWS_AT_ONCE = 32  # that one thread takes: a row is a system call of some µs if it is in the page cache


class RowReader:
    """The rows of tensors [rows, ...] that continue each other, through the page cache. Keeps their files open.

    count: rows in all. row_bytes: of each.
    """

    def __init__(self, parts: Sequence[StoredTensor]):
        """Raises ModelFilesError for a file that cannot be opened."""
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.count = int(self._ends[-1])
        self.row_bytes = parts[0].nbytes // parts[0].shape[0]
        self._files = FileTable([part.file for part in parts], direct=False)
        self._workers = Workers(THREADS, DISK_BLOCK)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The rows with these numbers, int64 [n], as they are stored: uint8 [n, row_bytes].

        Raises ModelFilesError for a number that the table does not have, and for a file that ends too early.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.count:
            name, file = self._parts[0].name, self._parts[0].file
            raise ModelFilesError(f"{file}: row {wanted[-1]:,} of {name} is asked for, which has {self.count:,} rows.")
        found = np.empty((len(wanted), self.row_bytes), np.uint8)
        part_of = np.searchsorted(self._ends, wanted, side="right")

        def read(first: int, _: memoryview) -> None:
            for place in range(first, min(first + _ROWS_AT_ONCE, len(wanted))):
                part, end = self._parts[part_of[place]], self._ends[part_of[place]]
                row = int(wanted[place] - end) + part.shape[0]
                self._files[part.file].read_into([found[place].data], part.offset + row * self.row_bytes)

        self._workers.run(range(0, len(wanted), _ROWS_AT_ONCE), read)
        return found[places]

    def close(self) -> None:
        """Wait for what is being read, then close the files."""
        self._workers.close()
        self._files.close()
