import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from loaders.errors import ModelFilesError, OffloadError, UnsupportedModelError
from loaders.safetensors_files.headers import read_checkpoint, read_header, read_json

ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.arange(5, dtype=np.float16),
    "count": np.array(7, dtype=np.int64),
    "nothing": np.zeros((0, 3), dtype=np.float32),
}


def write(file: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def entry(begin: int, end: int, shape: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_shards(directory: Path) -> None:
    save_file({"a": np.ones(4, dtype=np.float32)}, directory / "one.safetensors")
    save_file({"b": np.ones(2, dtype=np.float32)}, directory / "two.safetensors")
    write_index(directory, {"a": "one.safetensors", "b": "two.safetensors"})


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_offsets_lead_to_the_bytes(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == ARRAYS.keys()
    assert checkpoint.files == (tmp_path / "model.safetensors",)
    assert checkpoint.nbytes == sum(array.nbytes for array in ARRAYS.values())
    for name, array in ARRAYS.items():
        tensor = checkpoint.tensors[name]
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            assert file.read(tensor.nbytes) == array.tobytes()
        assert tensor.shape == array.shape


def test_shards(tmp_path):
    write_shards(tmp_path)
    checkpoint = read_checkpoint(str(tmp_path))
    assert {name: tensor.file.name for name, tensor in checkpoint.tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_the_index_decides_where_a_tensor_is_that_two_shards_hold(tmp_path):
    write_shards(tmp_path)
    save_file({"a": np.zeros(9, dtype=np.float32), "b": np.ones(2, dtype=np.float32)}, tmp_path / "two.safetensors")
    assert read_checkpoint(tmp_path).tensors["a"].shape == (4,)


def test_every_truncation_is_noticed(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ModelFilesError, match=r"model\.safetensors: .* the file has"):
            read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "its JSON cannot be read"),
        (b"\xff\xfe", "its JSON cannot be read"),
        (b"[" * 100_000, "its JSON cannot be read"),
        (b"[]", "not an object"),
        ({"w": 3}, "header entry of w"),
        ({"w": {"dtype": "F32", "shape": [4]}}, "header entry of w"),
        ({"w": entry(0, 16, 4)}, "header entry of w"),
        ({"w": entry(0, 16, [4.0])}, "header entry of w"),
        ({"w": entry(0, 16, [True, 4])}, "header entry of w"),
        ({"w": entry(0, 16, [-2, -2])}, "header entry of w"),
        ({"w": entry(-16, 0, [4])}, "header entry of w"),
        ({"w": entry(0, 16, [4], dtype=32)}, "header entry of w"),
        ({"w": entry(0, 16, [5])}, r"w is F32 \[5\] and needs 20 bytes, but its offsets span 16"),
        ({"w": entry(16, 0, [4])}, "its offsets span -16"),
        ({"w": entry(0, 20, [5])}, "truncated: its tensors need"),
        ({"w": entry(0, 8, [2])}, "too long: its tensors need"),
        ({"w": entry(0, 16, [4]), "v": entry(8, 16, [2])}, "v at byte .* overlaps w"),
        ({"w": entry(0, 4, [1]), "v": entry(8, 16, [2])}, "v at byte .* leaves a gap after w"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, message):
    file = write(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(ModelFilesError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("length", [1 << 63, 101_000_000, 17])
def test_a_header_longer_than_the_file_is_not_read(tmp_path, length):
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b" " * 16)
    with pytest.raises(ModelFilesError, match=f"the header needs {length} bytes, the file has 16"):
        read_header(file)


def test_an_unknown_dtype_is_named(tmp_path):
    file = write(tmp_path / "model.safetensors", {"w": entry(0, 16, [4], "C128")}, bytes(16))
    with pytest.raises(UnsupportedModelError, match="w is stored as 'C128'"):
        read_header(file)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), replacement=st.binary(min_size=1, max_size=12))
def test_whatever_the_header_says_tensors_lie_inside_the_file(tmp_path, at, replacement):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    damaged = bytearray((tmp_path / "model.safetensors").read_bytes())
    at %= len(damaged)
    damaged[at : at + len(replacement)] = replacement
    (tmp_path / "model.safetensors").write_bytes(damaged)
    try:
        tensors = read_checkpoint(tmp_path).tensors.values()
    except OffloadError:
        return
    assert all(8 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(damaged) for tensor in tensors)


def test_absent_shards_are_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ModelFilesError, match=r"1 of 2 weight files are missing \(two.safetensors\)"):
        read_checkpoint(tmp_path)


def test_a_tensor_that_only_the_index_knows_is_told_to_whoever_wants_it(tmp_path):
    write_shards(tmp_path)
    write_index(tmp_path, {"a": "one.safetensors", "c": "two.safetensors", "b": "two.safetensors"})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == {"a", "b"} and checkpoint.absent == {"c": tmp_path / "two.safetensors"}


def test_a_tensor_that_the_index_misplaces_is_read_from_the_one_file_that_holds_it(tmp_path):
    write_shards(tmp_path)
    save_file({"c": np.ones(4, dtype=np.float32)}, tmp_path / "three.safetensors")
    places = {"a": "two.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    write_index(tmp_path, places | {"d": "three.safetensors"})
    assert {name: t.file.name for name, t in read_checkpoint(tmp_path).tensors.items()} == {
        "a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"
    }  # fmt: skip
    save_file({"c": np.ones(4, dtype=np.float32), "b": np.ones(2, dtype=np.float32)}, tmp_path / "two.safetensors")
    with pytest.raises(ModelFilesError, match="c here, but 2 other files hold it"):
        read_checkpoint(tmp_path)


def test_shards_may_lie_in_directories_below(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    save_file({"a": np.ones(4, dtype=np.float32)}, tmp_path / "deep" / "er" / "one.safetensors")
    write_index(tmp_path, {"a": "deep/er/one.safetensors"})
    assert read_checkpoint(tmp_path).tensors["a"].file == tmp_path / "deep" / "er" / "one.safetensors"


@pytest.mark.parametrize(
    "shard", ["../a.safetensors", "/a.safetensors", "b/../../a.safetensors", "b//a.safetensors", "b\\a.safetensors",
              "./a.safetensors", "b/", "a\0b", "a\x1b[31m", "x" * 300],
)  # fmt: skip
def test_an_index_never_leads_out_of_its_directory(tmp_path, shard):
    write_shards(tmp_path)
    write_index(tmp_path, {"a": shard})
    with pytest.raises(ModelFilesError, match="not a file name"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4948\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><head>" + bytes(100), "a web page.*/resolve/"),
        (b"PK\x03\x04" + bytes(100), "PyTorch"),
        (b"GGUF" + bytes(100), "GGUF file under another name"),
    ],
)
def test_what_another_file_is_in_the_place_of_weights_is_said(tmp_path, content, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelFilesError, match=message):
        read_checkpoint(tmp_path)
    with pytest.raises(ModelFilesError, match=message):
        read_json(file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["consolidated.safetensors", "params.json"], r"consolidated\.safetensors\. Consolidated files name tensors"),
        (["pytorch_model.bin"], "can run code"),
        (["adapter_model.safetensors", "adapter_config.json"], "--adapter"),
        (["weights.safetensors"], r"rename it to model\.safetensors"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            r"Without model\.safetensors\.index",
        ),
        (["model.onnx"], r"It holds model\.onnx"),
        ([], "Download the model again"),
    ],
)
def test_other_weights_are_named_where_the_models_are_not_there(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelFilesError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "two.safetensors", "model.safetensors.index.json"])
def test_a_link_that_leads_nowhere_is_named_as_one(tmp_path, name):
    if name != "model.safetensors":
        write_shards(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("../../blobs/gone")
    with pytest.raises(ModelFilesError, match=rf"{name}: it is a link to \.\./\.\./blobs/gone, which is not there"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../one.safetensors", "/etc/passwd", "sub/../../one.safetensors", 3, ""])
def test_an_index_cannot_lead_out_of_the_directory(tmp_path, shard):
    write_index(tmp_path, {"a": shard})
    with pytest.raises(ModelFilesError, match="not a file name in this directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, ["a"]])
def test_an_index_without_a_map(tmp_path, weight_map):
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFilesError, match="it has no `weight_map`"):
        read_checkpoint(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(ModelFilesError, match="no such file or directory"):
        read_checkpoint(tmp_path / "absent")
    with pytest.raises(ModelFilesError, match=r"neither model\.safetensors nor .* Download"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelFilesError, match=r"It holds pytorch_model\.bin\. Such files can run code"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {}}', "is there twice"),
        ({"a": entry(0, 0, [1] * 200_000)}, "no dtype, shape"),
        ({"a": entry(0, 0, [0, 1 << 63])}, "no dtype, shape"),
        ({"a" * 70_000: entry(0, 4, [1])}, "70,000 characters"),
        ({"a\x1b[31m": entry(0, 4, [1])}, "names a tensor"),
        ({"": entry(0, 4, [1])}, "names a tensor"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', "surrogate"),
    ],
)
def test_names_and_shapes_are_bounded(tmp_path, header, fault):
    with pytest.raises(ModelFilesError, match=fault) as caught:
        read_header(write(tmp_path / "model.safetensors", header, bytes(4)))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("weight_map", [{"a": "x" * 300}, {"a" * 100_000: "model.safetensors"}, {"a": "\x1b]0;"}])
def test_names_in_an_index_are_bounded(tmp_path, weight_map):
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFilesError) as caught:
        read_checkpoint(tmp_path)
    assert len(str(caught.value)) < 1000
