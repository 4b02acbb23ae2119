"""Multimodal models by name: the plan and the download take the shards that hold text, and no others."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from loaders.errors import UnsupportedModelError
from loaders.hub.download import download
from loaders.hub.find import find_model
from loaders.hub.headers import read_hub_checkpoint
from loaders.hub.names import HubName
from loaders.safetensors_files.headers import has_all_weights, read_checkpoint
from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from offload_runtime.planning.read_models import read_config
from tests.fakes.fake_hub import FakeHub, serve
from tests.samples.multimodal.checkpoints import checkpoint, greedy
from tests.samples.tiny_models import PROMPT

NAME = HubName("tiny/vl")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as running:
        running.answer(monkeypatch, tmp_path / "hub")
        yield running


def shards_with(directory: Path, word: str) -> set[str]:
    """The files that hold a tensor with this word in its name."""
    files = {file.name: safe_open(file, "pt") for file in directory.glob("*.safetensors")}
    return {file for file, opened in files.items() if any(word in name for name in opened.keys())}  # noqa: SIM118


@pytest.mark.parametrize(("family", "image"), [("qwen3_vl", "visual"), ("qwen2_5_vl", "visual"), ("gemma3", "vision")])
def test_shards_without_text_stay_on_the_hub(hub: FakeHub, family: str, image: str) -> None:
    source = checkpoint(family, shard_size="30KB")
    hub.add("tiny/vl", source)
    everything = {file.name for file in source.glob("*.safetensors")}
    model = find_model(NAME)
    listed = {file.name for file in model.files if file.name.endswith(".safetensors")}
    others = everything - listed
    assert others and others < shards_with(source, image), "what is left out holds images alone"
    planned = read_hub_checkpoint(model)
    assert not any(image in name for name in planned.tensors)
    assert not any(hub.asked("GET", name) for name in others)
    download(model, lambda nbytes: None)
    assert has_all_weights(model.directory) and read_checkpoint(model.directory) == planned
    assert {file.name for file in model.directory.glob("*.safetensors")} == listed
    assert find_model(NAME, offline=True).directory == model.directory, "the cache has all that is needed"
    with OffloadRuntime.from_pretrained(model.directory, "none", device="cpu", context_length=64) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
    assert reply.token_ids == greedy(source, PROMPT, 8)


def test_a_shard_with_text_is_missed(hub: FakeHub) -> None:
    """The control: the same download less one shard is not whole."""
    hub.add("tiny/vl", checkpoint("qwen3_vl", shard_size="30KB"))
    model = find_model(NAME)
    download(model, lambda nbytes: None)
    next(model.directory.glob("*.safetensors")).unlink()
    assert not has_all_weights(model.directory)


def test_the_plan_says_what_is_not_read(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint("gemma4", shard_size="30KB")
    hub.add("tiny/vl", source)
    assert main(["--model", "tiny/vl", "--device", "cpu", "--plan"]) == 0
    told = capsys.readouterr().out
    assert "Only the text part of the model is run: images and audio are not read." in told
    assert main(["--model", "tiny/vl", "--device", "cpu", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_read"] == "images and audio are not read"


def test_what_cannot_run_alone_is_refused_before_the_headers(hub: FakeHub) -> None:
    config = json.dumps({"model_type": "kosmos-2", "text_config": {}}).encode()
    hub.add("tiny/vl", {"config.json": config, "model.safetensors": b"\0" * 100})
    model = find_model(NAME)
    with pytest.raises(UnsupportedModelError, match="kosmos-2 cannot be run"):
        read_config(model.directory)
    assert not hub.asked("GET", "model.safetensors")
