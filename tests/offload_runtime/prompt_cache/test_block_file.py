"""The file of a block: read as it was written, or refused, whatever was done to it.

`HOSTILE_SEEDS=5000 pytest tests/offload_runtime/prompt_cache/test_block_file.py --timeout 0` tries more.
"""

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from offload_runtime.prompt_cache import block_file
from offload_runtime.prompt_cache.block_file import Refused, read_rows, read_tokens, write_block
from offload_runtime.prompt_cache.blocks import MOST_TOKENS, Block, digest
from tests.loaders.hostile.hostile_files import damage_bytes, damage_file, damage_safetensors

SEEDS = int(os.environ.get("HOSTILE_SEEDS", "400"))
PARENT = digest(b"what comes before")
COUNT = 20
BLOCK = Block(PARENT, 0, tuple(range(3, 3 + COUNT)))
TABLES = {
    "keys.0": torch.zeros(2, 64, 8),
    "values.0": torch.zeros(2, 64, 4),
    "keys.2": torch.zeros(1, 64, 3, dtype=torch.bfloat16),
    "values.2": torch.zeros(1, 64, 3, dtype=torch.float16),
}


def rows_of(seed: int = 0, count: int = COUNT) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(table.shape[0], count, table.shape[2], generator=chance).to(table.dtype)
        for name, table in TABLES.items()
    }


ROWS = rows_of()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / BLOCK.file_name
    write_block(file, BLOCK, ROWS)
    return file


def assert_is_whole(path: Path) -> None:
    assert read_tokens(path, TABLES) == BLOCK.tokens
    rows = read_rows(path, TABLES)
    assert rows.keys() == ROWS.keys() and all(torch.equal(rows[name], ROWS[name]) for name in ROWS)


def test_a_block_is_read_as_it_was_written(path: Path) -> None:
    assert_is_whole(path)
    assert path.stat().st_mode & 0o777 == 0o600 and [*path.parent.iterdir()] == [path]


def test_the_library_reads_it_too(path: Path) -> None:
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("keys.2"), ROWS["keys.2"])
        assert tuple(file.get_tensor("tokens").tolist()) == BLOCK.tokens


def test_every_flipped_bit_is_found(path: Path) -> None:
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    for place in (*range(0, len(content), 37), *range(len(content) - 8, len(content))):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(Refused) if place >= data else suppress(Refused):  # JSON has several forms
            assert_is_whole(path)


def test_damaged_files_are_read_as_they_were_written_or_refused(path: Path) -> None:
    content, refused = path.read_bytes(), 0
    for seed in range(SEEDS):
        chance = random.Random(seed)
        path.write_bytes((damage_bytes if seed % 2 else damage_safetensors)(content, chance))
        try:
            assert_is_whole(path)
        except Refused:
            refused += 1
    assert refused > SEEDS // 2


def test_other_things_in_its_place_are_refused(tmp_path: Path) -> None:
    for seed in range(30):
        file = tmp_path / str(seed) / BLOCK.file_name
        file.parent.mkdir()
        write_block(file, BLOCK, ROWS)
        what = damage_file(file, random.Random(seed))
        for read in (read_tokens, read_rows):
            with pytest.raises((Refused, OSError)):
                read(file, TABLES)
                raise AssertionError(what)


def test_a_link_to_a_good_file_is_not_followed(path: Path) -> None:
    there = path.with_name("elsewhere")
    path.rename(there)
    path.symlink_to(there)
    with pytest.raises(OSError, match="symbolic link"):
        read_rows(path, TABLES)
    write_block(path, BLOCK, ROWS)  # takes the link's place
    assert_is_whole(path)
    assert not path.is_symlink()


def test_rows_under_the_name_of_others_are_refused(tmp_path: Path) -> None:
    """Another text's, another model's whose rows have the same shapes, and those of another place in the text."""
    for name, block in (
        ("another text", Block(PARENT, 0, (*BLOCK.tokens[:-1], 50))),
        ("another model", Block(digest(b"another"), 0, BLOCK.tokens)),
    ):
        file = tmp_path / name
        file.mkdir()
        write_block(file / block.file_name, block, rows_of(1))
        (file / block.file_name).rename(file / BLOCK.file_name)
        with pytest.raises(Refused, match=r"name|checksum"):
            read_rows(file / BLOCK.file_name, TABLES)


@pytest.mark.parametrize(
    "other",
    [
        {"keys.0": torch.zeros(2, 64, 8)},
        {**TABLES, "keys.0": torch.zeros(2, 64, 4)},
        {**TABLES, "keys.0": torch.zeros(2, 64, 8, dtype=torch.float16)},
        {("keys.1" if name == "keys.0" else name): table for name, table in TABLES.items()},
    ],
)
def test_rows_of_other_shapes_are_refused(path: Path, other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(Refused, match="another model"):
        read_rows(path, other)


def test_a_file_larger_than_any_block_is_refused_unread(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(Refused, match="larger"):
        read_rows(path, TABLES)


def test_a_block_of_too_many_tokens_is_refused(tmp_path: Path) -> None:
    block = Block(PARENT, 0, tuple(range(MOST_TOKENS + 1)))
    write_block(tmp_path / block.file_name, block, rows_of(0, MOST_TOKENS + 1))
    with pytest.raises(Refused, match="none of a block"):
        read_rows(tmp_path / block.file_name, TABLES)


def test_a_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_file, "_bytes_of", lambda rows: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_block(path, BLOCK, rows_of(1))
    monkeypatch.undo()
    assert_is_whole(path)
    assert [*path.parent.iterdir()] == [path]
