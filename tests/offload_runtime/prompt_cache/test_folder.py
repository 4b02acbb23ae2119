"""The directory of a prompt cache: private, bounded, and shared with other processes and other files."""

import os
import time
from pathlib import Path

import pytest

from offload_runtime.errors import UsageError
from offload_runtime.prompt_cache import folder as module
from offload_runtime.prompt_cache.blocks import Block, digest
from offload_runtime.prompt_cache.folder import Folder, mark_used


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are counted every time."""
    monkeypatch.setattr(module, "COUNTED_SECONDS", -1.0)


MODELS = [digest(b"one model"), digest(b"another")]


def block(folder: Folder, number: int, nbytes: int = 100, used: int | None = None, model: int = 0) -> Path:
    """A file named like a block, used in the order of the numbers."""
    path = folder.of_model(MODELS[model]) / Block(MODELS[model], 0, (number,)).file_name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0" * nbytes)
    mark_used([path], number if used is None else used)
    return path


def left(*paths: Path) -> list[bool]:
    return [path.exists() for path in paths]


def test_the_directory_is_private(tmp_path: Path) -> None:
    assert Folder(tmp_path / "a" / "b").path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UsageError, match="others may write"):
        Folder(tmp_path)


def test_somebody_elses_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="others may write"):
        Folder(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot be the prompt cache"):
            Folder(path)


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 350)
    first, second, third = (block(folder, number, model=number % 2) for number in (1, 2, 3))
    mark_used([first], 4)
    assert folder.make_room(100, used=5)
    assert left(first, second, third) == [True, False, True]
    assert folder.make_room(250, used=6) and left(first, third) == [True, False]
    assert not folder.of_model(MODELS[0]).exists(), "the folder of a model goes with its last block"


def test_the_parts_of_a_text_go_from_its_end(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 300)
    chain = [block(folder, number) for number in range(3)]
    mark_used(chain, time.time_ns())
    assert folder.make_room(100, used=time.time_ns())
    assert left(*chain) == [True, True, False]


def test_what_was_used_later_is_not_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 250)
    old, new = block(folder, 1), block(folder, 9)
    assert not folder.make_room(200, used=5) and left(old, new) == [True, True]
    assert not folder.make_room(251, used=10) and left(old, new) == [True, True]
    assert folder.make_room(150, used=5) and left(old, new) == [False, True]


def test_a_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, 10_000)
    path = block(folder, 1)
    usage = type("usage", (), {"free": module.LEFT_FREE + 50})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    assert folder.make_room(50, used=5) and path.exists()
    assert folder.make_room(150, used=5) and not path.exists()
    assert not folder.make_room(150, used=5)


def test_files_of_other_processes_are_counted_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = Folder(tmp_path, 350), Folder(tmp_path, 350)
    theirs = [block(other, number) for number in (1, 2, 3)]
    monkeypatch.setattr(module, "COUNTED_SECONDS", 1e9)
    assert folder.make_room(100, used=9) and left(*theirs) == [True, True, True]
    monkeypatch.setattr(module, "COUNTED_SECONDS", -1.0)
    assert folder.make_room(100, used=9) and left(*theirs) == [False, True, True]


def test_without_a_size_it_is_a_share_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block(Folder(tmp_path), 1, nbytes=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": 99_000}))
    assert Folder(tmp_path).size == 10_000
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1 << 50}))
    assert Folder(tmp_path).size == module.MOST_BYTES


def test_other_files_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 150)
    ours = block(folder, 1)
    others = [
        *(tmp_path / "letter.txt", tmp_path / "photos" / ours.name, tmp_path / ours.name),
        *(ours.with_name("model.safetensors"), ours.with_name(f"{ours.name}.bak")),
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"\0" * 1000)
        os.utime(other, ns=(0, 0))
    link = ours.with_name(Block(MODELS[0], 0, (5,)).file_name)
    link.symlink_to(others[0])
    (tmp_path / digest(b"a link")).symlink_to(tmp_path / "photos")
    assert [file.path for file in folder.files()] == [ours]
    assert folder.make_room(100, used=5)
    assert not ours.exists() and all(other.exists() for other in others) and link.is_symlink()


def test_what_a_kill_left_unfinished_is_removed_later(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    name = block(folder, 1).name
    old, new, other = (folder.of_model(MODELS[0]) / f".{name}" for name in (f"{name}.abcd", f"{name}.efgh", "x.abcd"))
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    Folder(tmp_path)
    assert left(old, new, other) == [False, True, True]
