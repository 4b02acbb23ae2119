"""Random checkpoints are what transformers and our own readers take for real ones."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from loaders.checkpoint.random_weights import SHAPES, share_layers, write_random_checkpoint
from loaders.errors import ModelFilesError
from loaders.safetensors_files.headers import read_checkpoint

TINY = SHAPES["tiny"]
TIED = {**TINY, "tie_word_embeddings": True}
EXPERTS = {**TINY, "model_type": "mixtral", "num_local_experts": 4, "intermediate_size": 32}

# In millions, as published.
PARAMETERS = {
    "llama-68m": 68.03, "llama-160m": 162.4, "tinyllama-1.1b": 1100.0, "llama-3.2-1b": 1235.8, "llama-3.2-3b": 3212.7,
    "llama-2-7b": 6738.4, "llama-2-13b": 13015.9, "llama-2-70b": 68976.6, "llama-3-8b": 8030.3, "llama-3-70b": 70553.7,
    "qwen2.5-0.5b": 494.0, "qwen2.5-7b": 7615.6, "qwen2.5-32b": 32763.9, "qwen2.5-72b": 72706.2,
    "qwen3-0.6b": 596.0, "qwen3-32b": 32762.1,
    "mixtral-8x7b": 46702.8,
}  # fmt: skip


def loaded(directory: Path) -> PreTrainedModel:
    """The model as transformers loads it, which must neither miss nor meet a name it does not know."""
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, local_files_only=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("shape", [TINY, TIED, EXPERTS, {**TINY, "model_type": "qwen2"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_it(tmp_path: Path, shape: dict[str, Any], dtype: torch.dtype) -> None:
    write_random_checkpoint(shape, tmp_path, dtype)
    model = loaded(tmp_path)
    assert model.dtype == dtype
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize("shape", [TINY, EXPERTS])
def test_values_have_the_right_spread(tmp_path: Path, shape: dict[str, Any]) -> None:
    write_random_checkpoint(shape, tmp_path, torch.float32)
    for name, parameter in loaded(tmp_path).named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert 0.018 < float(parameter.detach().std()) < 0.022, name


def test_rows_and_tensors_differ(tmp_path: Path) -> None:
    write_random_checkpoint({**TINY, "vocab_size": 100_000}, tmp_path)
    model = loaded(tmp_path)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert embedding.numel() > 4_194_319  # longer than the repeated block
    assert len(torch.unique(embedding[:, :8], dim=0)) == len(embedding)
    assert not torch.equal(embedding, head)


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_checkpoint(TINY, tmp_path / name, seed=seed)
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b") != file_bytes(tmp_path / "c")


def test_the_config_given_is_not_changed(tmp_path: Path) -> None:
    config = AutoConfig.for_model(**TINY)
    before = config.to_dict()
    write_random_checkpoint(config, tmp_path)
    assert config.to_dict() == before
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_shards_hold_what_one_file_does(tmp_path: Path) -> None:
    write_random_checkpoint(TINY, tmp_path / "one")
    write_random_checkpoint(TINY, tmp_path / "many", shard_bytes=100_000)
    one, many = read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "many")
    assert len(one.files) == 1 and len(many.files) > 3
    assert one.nbytes == many.nbytes
    assert max(path.stat().st_size for path in many.files[1:-1]) < 110_000
    for (name, parameter), (_, other) in zip(loaded(tmp_path / "one").named_parameters(),
                                             loaded(tmp_path / "many").named_parameters(), strict=True):  # fmt: skip
        assert torch.equal(parameter, other), name


@pytest.mark.parametrize("shape", [TINY, EXPERTS])
def test_layers_on_disk_stand_for_the_others(tmp_path: Path, shape: dict[str, Any]) -> None:
    write_random_checkpoint(shape, tmp_path / "all")
    write_random_checkpoint(shape, tmp_path / "two", distinct_layers=2)
    whole, part = read_checkpoint(tmp_path / "all"), read_checkpoint(tmp_path / "two")
    shared = share_layers(part, shape["num_hidden_layers"])
    assert part.nbytes < whole.nbytes
    assert {name: tensor.shape for name, tensor in shared.tensors.items()} == {
        name: tensor.shape for name, tensor in whole.tensors.items()
    }
    assert all(name == tensor.name for name, tensor in shared.tensors.items())
    third, first = (shared.tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (3, 1))
    assert (third.file, third.offset) == (first.file, first.offset)


def test_a_full_disk_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000_000))
    with pytest.raises(ModelFilesError, match=r"13\.5 GB are needed, but 1\.00 GB are free"):
        write_random_checkpoint(SHAPES["llama-2-7b"], tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000_000))
    with pytest.raises(ModelFilesError, match=r"13\.5 GB are needed, but 20\.0 MB are free"):
        write_random_checkpoint(SHAPES["llama-2-7b"], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[name]))
    assert model.num_parameters() / 1e6 == pytest.approx(PARAMETERS[name], rel=1e-3)
