"""What a path on this machine means, and what is said where it means no model."""

import json
import os
from pathlib import Path

import pytest

from loaders.checkpoint.local_models import local_model
from loaders.checkpoint.model_source import load_tokenizer, model_source
from loaders.errors import ModelFilesError
from loaders.gguf.header import read_gguf

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4948\n"
COMMITS = ("a" * 40, "b" * 40)
SHARDS = ("model-00001-of-00002.safetensors", "deep/two.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_text("{}")
    return directory


def cached(root: Path, commits: tuple[str, ...]) -> Path:
    folder = root / "models--org--name"
    (folder / "snapshots").mkdir(parents=True)
    for commit in commits:
        (folder / "snapshots" / commit).mkdir()
    return folder


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors"])
def test_files_of_a_model_mean_the_model(model: Path, name: str) -> None:
    assert local_model(model / name) == model


def test_a_shard_means_its_model(model: Path) -> None:
    (model / "model.safetensors").rename(model / SHARDS[0])
    index = {"weight_map": dict(zip("ab", SHARDS))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert local_model(model / SHARDS[0]) == local_model(model / "model.safetensors.index.json") == model


@pytest.mark.parametrize("name", ["consolidated.safetensors", "tokenizer.json", "other.safetensors"])
def test_other_files_mean_no_model(model: Path, name: str) -> None:
    (model / name).write_text("{}")
    with pytest.raises(ModelFilesError, match="this one file is no model"):
        local_model(model / name)


def test_files_that_run_code_are_no_models(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ModelFilesError, match="can run code"):
        local_model(model / "pytorch_model.bin")


@pytest.mark.parametrize("below", ["", "snapshots"])
def test_a_folder_of_the_cache_means_its_newest_commit(tmp_path: Path, below: str) -> None:
    folder = cached(tmp_path, COMMITS)
    with pytest.raises(ModelFilesError, match="2 commits and no note which is the newest") as caught:
        local_model(folder / below)
    assert all(f"--model {folder}/snapshots/{commit}" in str(caught.value) for commit in COMMITS)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMITS[1])
    assert local_model(folder / below) == folder / "snapshots" / COMMITS[1]


def test_a_folder_of_the_cache_with_one_commit_or_none(tmp_path: Path) -> None:
    folder = cached(tmp_path, COMMITS[:1])
    assert local_model(folder) == folder / "snapshots" / COMMITS[0]
    (folder / "snapshots" / COMMITS[0]).rmdir()
    with pytest.raises(ModelFilesError, match="nothing was downloaded"):
        local_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "directory"])
def test_a_link_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(ModelFilesError, match=f"it is a link to {tmp_path}/gone, which is not there"):
        local_model(tmp_path / name)


def test_what_lies_in_the_place_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").symlink_to("gone")
    with pytest.raises(ModelFilesError, match=r"x\.gguf: it is a link to gone"):
        local_model(tmp_path)
    (tmp_path / "x.gguf").unlink()
    (tmp_path / "x.gguf").write_bytes(LFS_POINTER)
    with pytest.raises(ModelFilesError, match=r"x\.gguf: .*git lfs pull"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_what_lies_in_the_place_of_a_tokenizer(model: Path, name: str) -> None:
    (model / name).write_bytes(LFS_POINTER)
    with pytest.raises(ModelFilesError, match=rf"{name}: .*git lfs pull"):
        load_tokenizer(model)
    (model / name).unlink()
    (model / name).symlink_to("gone")
    with pytest.raises(ModelFilesError, match=rf"{name}: it is a link to gone"):
        load_tokenizer(model)


@pytest.mark.parametrize("kind", ["link", "loop", "directory", "pipe"])
@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "adapter_config.json",
             "quantize_config.json", "special_tokens_map.json", "model.safetensors.index.json"],
)  # fmt: skip
def test_what_lies_in_the_place_of_a_small_file_is_not_passed_over(model: Path, name: str, kind: str) -> None:
    file = model / name
    file.unlink(missing_ok=True)
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("gone" if kind == "link" else name)
    with pytest.raises(ModelFilesError, match=name):
        model_source(model).config()
