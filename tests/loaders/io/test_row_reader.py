"""Rows of a table in several tensors, read by number."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loaders.errors import ModelFilesError
from loaders.io.row_reader import RowReader
from loaders.safetensors_files.headers import StoredTensor, read_header

TABLE = torch.arange(90 * 6, dtype=torch.int32).view(90, 6).to(torch.float32)


@pytest.fixture
def parts(tmp_path: Path) -> list[StoredTensor]:
    """The table in three tensors of 7, 80 and 3 rows, in two files."""
    first, second, third = TABLE.split((7, 80, 3))
    save_file({"a": first.contiguous(), "other": torch.zeros(5), "c": third.contiguous()}, tmp_path / "1.safetensors")
    save_file({"b": second.contiguous()}, tmp_path / "2.safetensors")
    stored = {**read_header(tmp_path / "1.safetensors"), **read_header(tmp_path / "2.safetensors")}
    return [stored[name] for name in "abc"]


@pytest.fixture
def reader(parts: list[StoredTensor]) -> Iterator[RowReader]:
    with closing(RowReader(parts)) as reader:
        yield reader


def test_rows_of_all_parts_in_the_order_asked_for(reader: RowReader) -> None:
    generator = np.random.default_rng(0)
    for rows in ([0, 6, 7, 86, 87, 89], [89, 0, 0, 89], [], generator.integers(0, 90, 500)):
        numbers = np.array(rows, np.int64)
        found = torch.from_numpy(reader.read(numbers).view(np.float32))
        assert torch.equal(found, TABLE[torch.from_numpy(numbers)])


@pytest.mark.parametrize("row", [-1, 90, 1 << 40])
def test_a_row_that_is_not_there(reader: RowReader, row: int) -> None:
    with pytest.raises(ModelFilesError, match="of a is asked for, which has 90 rows"):
        reader.read(np.array([3, row], np.int64))


def test_a_file_that_was_cut(parts: list[StoredTensor], reader: RowReader) -> None:
    with parts[1].file.open("r+b") as file:
        file.truncate(parts[1].offset + 20 * 24)
    assert len(reader.read(np.array([7 + 19], np.int64))) == 1
    with pytest.raises(ModelFilesError, match="truncated"):
        reader.read(np.array([7 + 20], np.int64))
