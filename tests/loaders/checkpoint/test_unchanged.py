"""What was read of files is kept only for as long as they cannot have changed."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from loaders import unchanged
from loaders.safetensors_files import headers as safetensors_files
from loaders.unchanged import kept_while_unchanged, signature
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET, Options
from offload_runtime.planning.planning import prepare
from offload_runtime.speculation import acceptance_store


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once."""
    monkeypatch.setattr(unchanged, "SETTLED_SECONDS", float("-inf"))


@pytest.fixture
def readings() -> list[str]:
    return []


def reader(readings: list[str]):
    @kept_while_unchanged(lambda path: (path,))
    def read(path: Path) -> str:
        readings.append(path.read_text())
        return readings[-1]

    return read


def test_a_file_is_read_once(tmp_path: Path, settled: None, readings: list[str]) -> None:
    file, read = tmp_path / "file", reader(readings)
    file.write_text("one")
    assert [read(file) for _ in range(3)] == ["one"] * 3 and readings == ["one"]


def test_a_file_that_changed_is_read_again(tmp_path: Path, settled: None, readings: list[str]) -> None:
    file, read = tmp_path / "file", reader(readings)
    file.write_text("one")
    assert read(file) == "one"
    file.write_text("three")
    assert read(file) == "three"
    other = tmp_path / "other"
    other.write_text("seven")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)  # as long, and as old
    assert read(file) == "seven"


def test_a_file_that_was_just_written_is_read_every_time(tmp_path: Path, readings: list[str]) -> None:
    """It could be written again within the resolution of its times; however old it says it is."""
    file, read = tmp_path / "file", reader(readings)
    file.write_text("one")
    os.utime(file, (0, 0))
    assert signature([file]) is None
    assert [read(file), read(file)] == ["one"] * 2 and len(readings) == 2


def test_errors_are_not_kept(tmp_path: Path, settled: None, readings: list[str]) -> None:
    read = reader(readings)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "file")
    (tmp_path / "file").write_text("one")
    assert read(tmp_path / "file") == "one"


def test_a_start_parses_headers_and_makes_fingerprints_once(settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()
    parse = safetensors_files.parse_header

    def counted_parse(file: Path, text: bytes, size: int):
        done[file.parent.name] += 1
        return parse(file, text, size)

    class Hashes:
        @staticmethod
        def sha256(content: bytes):
            done["fingerprints"] += b"model_type" in content
            return hashlib.sha256(content)

    monkeypatch.setattr(safetensors_files, "parse_header", counted_parse)
    monkeypatch.setattr(acceptance_store, "hashlib", Hashes)
    preparation = prepare(Options(DEMO_TARGET, DEMO_DRAFT, device="cpu", context_length=64))
    with OffloadRuntime(preparation):
        pass
    assert all(count <= 1 for name, count in done.items() if name != "fingerprints") and done["fingerprints"] <= 2
