"""JSON files of others are read with limits: kind of file, size, depth, digits, text."""

import os

import pytest

from loaders import json_files
from loaders.errors import ModelFilesError
from loaders.json_files import parse_object, read_json, read_object


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "cannot be read"),
        (b"[1]", "not an object"),
        (b'{"a": ' * 100_000, "cannot be read"),
        (b'{"a": 1' + b"0" * 100 + b"}", "101 digits"),
        (b'{"a": 1' + b"0" * 5_000 + b"}", "digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\xed\xa0\x80": 1}', "cannot be read|surrogate"),
        (b"\xff\xfe\xfd", "cannot be read"),
    ],
)
def test_what_is_no_object_is_told(tmp_path, text, fault):
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(ModelFilesError, match=f"config.json: .*({fault})"):
        read_json(file)


def test_whole_pairs_and_large_numbers_are_text_and_numbers():
    assert parse_object(b'{"a": "\\ud83d\\ude00", "b": 1000000000000000019884624838656}') == {"a": "😀", "b": int(1e30)}


def test_a_name_given_twice_is_refused_where_it_matters():
    text = b'{"a": 1, "b": {"c": 1, "c": 2}}'
    assert parse_object(text) == {"a": 1, "b": {"c": 2}}
    with pytest.raises(ValueError, match="'c' is there twice"):
        parse_object(text, unique_names=True)


def test_no_file_but_a_regular_one_is_read(tmp_path):
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)  # without a writer: opening it the usual way would wait for ever
    for path in (fifo, "/dev/zero", "/dev/tty0"):
        with pytest.raises((ValueError, OSError)):
            read_object(path)
    with pytest.raises(IsADirectoryError):
        read_object(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "a\0b")
    with file.open("wb") as stream:
        stream.truncate(json_files.MOST_BYTES + 1)  # no block of it is on disk
    with pytest.raises(ModelFilesError, match="larger than"):
        read_json(file)
