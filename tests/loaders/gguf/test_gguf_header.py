"""Headers of GGUF files: read as the `gguf` package reads them, and damaged in every way they can be."""

import random
import re
import struct
from pathlib import Path

import pytest

from loaders.errors import ModelFilesError, OffloadError, UnsupportedModelError
from loaders.gguf.content import Disk
from loaders.gguf.header import GgufArray, read_gguf
from tests.samples.gguf_samples import CASES, gguf, gguf_model


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


ARCHITECTURE = entry("general.architecture", 8, text("llama"))
WORDS = entry("words", 9, struct.pack("<IQ", 8, 3) + text("a") + text("") + text("ß"))
NUMBERS = entry("numbers", 9, struct.pack("<IQ3f", 6, 3, 1.5, 2.5, -3.5))


def header(
    entries: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (),
    start: bytes = b"GGUF" + struct.pack("<I", 3),
    data: int = 0,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file with `data` bytes behind the header, which ends at a multiple of 32."""
    tensor_count, key_count = counts or (len(tensors), len(entries))
    content = start + struct.pack("<QQ", tensor_count, key_count) + b"".join(entries) + b"".join(tensors)
    return content + bytes(-len(content) % 32 + data)


def written(directory: Path, content: bytes, name: str = "model.gguf") -> Path:
    file = directory / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("case", CASES)
def test_equals_what_the_package_reads(case):
    file = gguf_model(case)
    ours, theirs = read_gguf(file), gguf.GGUFReader(file)
    assert {key for key in theirs.fields if not key.startswith("GGUF.")} == ours.metadata.keys()
    for key, value in ours.metadata.items():
        stated = theirs.fields[key].contents()
        assert (ours.items(value) if isinstance(value, GgufArray) else value) == stated
    found = [(t.name, t.values, t.kind, t.offset, t.nbytes) for t in ours.tensors.values()]
    stated = [
        (t.name, tuple(t.shape[::-1].tolist()), t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert found == stated


def test_arrays_stay_in_the_file_until_they_are_read(tmp_path):
    file = read_gguf(written(tmp_path, header((ARCHITECTURE, WORDS, NUMBERS))))
    found = file.metadata
    assert (found["words"].count, found["numbers"].count) == (3, 3)
    assert file.items(found["words"]) == ["a", "", "ß"]
    assert file.items(found["numbers"]) == [1.5, 2.5, -3.5]


class InLooks(Disk):
    """Reads so many bytes at first, and notes how far it came."""

    def __init__(self, first: int):
        self.first, self.reached = first, 0

    def first_bytes(self, file: Path) -> int:
        return self.first

    def read(self, file: Path, start: int, stop: int) -> bytes:
        self.reached = max(self.reached, stop)
        return super().read(file, start, stop)


@pytest.mark.parametrize("first", [1, 7, 64, 100])
def test_headers_are_read_in_growing_looks(tmp_path, first):
    """Also where a look ends within a number, a key, an array of numbers or one of strings; weights stay unread."""
    content = header(
        (ARCHITECTURE, WORDS, NUMBERS, WORDS.replace(b"words", b"again")), (tensor("t", (2250,)),), data=9000
    )
    file, looks = written(tmp_path, content), InLooks(first)
    found, whole = read_gguf(file, looks), read_gguf(file)
    assert (found.metadata, found.tensors) == (whole.metadata, whole.tensors)
    assert found.items(found.metadata["again"]) == ["a", "", "ß"]
    assert looks.reached <= 2 * (len(content) - 9000)
    file.write_bytes(content[:200])
    with pytest.raises(ModelFilesError, match="the header"):
        read_gguf(file, looks)


HUGE = (1 << 63) + 5
DAMAGED = {
    "empty": (b"", "it is empty"),
    "another format": (b"GGML" + bytes(60), "no GGUF file"),
    "three bytes": (b"GGU", "the first bytes at byte 0 needs 4"),
    "huge count of keys": (header(counts=(0, HUGE)), "it has '' twice"),
    "huge count of tensors": (header(counts=(HUGE, 1)), "'' has 0 dimensions"),
    "huge key": (header((struct.pack("<Q", HUGE),)), "a key at byte 32 is"),
    "huge text": (header((entry("k", 8, struct.pack("<Q", HUGE)),)), "k at byte"),
    "huge array": (header((entry("k", 9, struct.pack("<IQ", 4, HUGE)),)), "k at byte"),
    "huge array of texts": (header((entry("k", 9, struct.pack("<IQ", 8, HUGE)),)), "k should hold"),
    "huge text in an array": (header((entry("k", 9, struct.pack("<IQQ", 8, 1, HUGE)),)), "k at byte"),
    "array of arrays": (header((entry("k", 9, struct.pack("<IQ", 9, 1)),)), "array of items of type 9"),
    "value of no type": (header((entry("k", 13, bytes(8)),)), "k has a value of type 13"),
    "key twice": (header((ARCHITECTURE, ARCHITECTURE)), "it has general.architecture twice"),
    "text that is none": (header((entry("k", 8, struct.pack("<Q", 2) + b"\xff\xfe"),)), "no UTF-8"),
    "alignment 24": (header((entry("general.alignment", 4, struct.pack("<I", 24)),)), "must be a power of two"),
    "alignment 0": (header((entry("general.alignment", 4, struct.pack("<I", 0)),)), "must be a power of two"),
    "alignment in words": (header((entry("general.alignment", 8, text("x")),)), "must be a power of two"),
    "tensor twice": (header(tensors=(tensor("t", (4,)), tensor("t", (4,))), data=64), "it has the tensor t twice"),
    "no dimension": (header(tensors=(tensor("t", ()),), data=64), "t has 0 dimensions"),
    "too many dimensions": (header(tensors=(tensor("t", (1,) * 5),), data=64), "t has 5 dimensions"),
    "huge dimensions": (header(tensors=(text("t") + struct.pack("<I", 1 << 31),), data=64), "t has 2147483648 dim"),
    "dimension 0": (header(tensors=(tensor("t", (4, 0)),), data=64), "which cannot be"),
    "not aligned": (header(tensors=(tensor("t", (4,), offset=8),), data=64), "at offset 8, which cannot be"),
    "huge offset": (header(tensors=(tensor("t", (4,), offset=1 << 60),), data=64), "does not follow the header"),
    "huge shape": (header(tensors=(tensor("t", (1 << 40, 1 << 40)),), data=64), "truncated"),
    "one byte short": (header(tensors=(tensor("t", (16,)),), data=63), "truncated: its tensors need"),
    "overlap": (header(tensors=(tensor("t", (16,)), tensor("u", (4,), offset=32)), data=64), "u at byte .* overlaps t"),
    "no whole blocks": (header(tensors=(tensor("t", (4, 33), 2),), data=640), "rows of 33 values"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(case, tmp_path):
    content, fault = DAMAGED[case]
    file = written(tmp_path, content)
    with pytest.raises(ModelFilesError, match=fault) as caught:
        read_gguf(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (header(start=b"GGUF" + struct.pack("<I", 1)), "GGUF version 1; versions 2 and 3"),
        (header(start=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
        (
            header(tensors=(tensor("t", (4, 256), 40),), data=9999),
            "t is stored as NVFP4.* Q4_0, .*Q6_K, .*MXFP4, F32, F16, BF16",
        ),
        (header(tensors=(tensor("t", (4, 256), 999),), data=9999), "t is stored as type 999"),
    ],
)
def test_what_is_not_supported_is_named_with_what_is(content, fault, tmp_path):
    with pytest.raises(UnsupportedModelError, match=fault):
        read_gguf(written(tmp_path, content))


def test_truncation_anywhere_is_an_error(tmp_path):
    content = gguf_model("Q4_0").read_bytes()
    for length in [*range(1, 400), *range(400, len(content), 997)]:
        with pytest.raises(OffloadError):
            read_gguf(written(tmp_path, content[:length]))


def test_no_damage_gives_another_kind_of_error_or_a_place_outside_the_file(tmp_path):
    """Random bytes of the header replaced by random or extreme ones."""
    content, chance = gguf_model("llama 3, mixed K").read_bytes(), random.Random(0)
    start = min(t.offset for t in read_gguf(gguf_model("llama 3, mixed K")).tensors.values())
    whole = 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(start)
            damaged[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
        try:
            found = read_gguf(written(tmp_path, bytes(damaged)))
        except OffloadError:
            continue
        whole += 1
        assert all(t.offset + t.nbytes <= len(damaged) for t in found.tensors.values())
    assert whole < 600


def test_a_directory_and_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelFilesError, match=re.escape(str(path))):
            read_gguf(path)


def split(
    number: int, count: int, tensors: int = 2, name: str | None = None, metadata: tuple[bytes, ...] = ()
) -> bytes:
    entries = (
        entry("split.no", 2, struct.pack("<H", number)),
        entry("split.count", 2, struct.pack("<H", count)),
        entry("split.tensors.count", 5, struct.pack("<i", tensors)),
    )
    return header((*metadata, *entries), (tensor(name or f"t{number}", (4,)),), data=32)


def splits(directory: Path, *contents: bytes) -> list[Path]:
    count = len(contents)
    return [written(directory, c, f"m-{i:05}-of-{count:05}.gguf") for i, c in enumerate(contents, start=1)]


def test_split_models_are_read_whole_whichever_file_is_named(tmp_path):
    files = splits(tmp_path, split(0, 2, metadata=(ARCHITECTURE,)), split(1, 2))
    for file in files:
        found = read_gguf(file)
        assert found.files == tuple(files) and found.metadata["general.architecture"] == "llama"
        assert {t.name: t.file for t in found.tensors.values()} == {"t0": files[0], "t1": files[1]}


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        ((split(0, 2, 3), split(1, 2)), "hold 2 tensors, but should hold 3"),
        ((split(0, 3), split(1, 3)), "one of 3 files, but its name says 2"),
        ((split(0, 2), split(2, 2)), "split.no is 2, but its name says 1"),
        ((split(0, 2), split(1, 2, name="t0")), "t0 is in another of the files too"),
    ],
)
def test_splits_that_do_not_belong_together(contents, fault, tmp_path):
    with pytest.raises(ModelFilesError, match=fault):
        read_gguf(splits(tmp_path, *contents)[0])


def test_missing_splits_are_named(tmp_path):
    first, second = splits(tmp_path, split(0, 2), split(1, 2))
    second.unlink()
    with pytest.raises(
        ModelFilesError, match=r"1 of the 2 files of this model are missing, the first is m-00002-of-0000"
    ):
        read_gguf(first)
    with pytest.raises(ModelFilesError, match=r"one of 2 files, but its name says 1\. Give"):
        read_gguf(first.rename(tmp_path / "renamed.gguf"))
