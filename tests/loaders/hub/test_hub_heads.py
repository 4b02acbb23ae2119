"""Draft heads by name: planned by their headers, refused by name before anything large is asked for, then run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from tests.fakes.fake_hub import FakeHub, serve
from tests.samples.head_samples import LAYER, write_dflash, write_eagle3
from tests.samples.tiny_models import PROMPT, checkpoint, greedy

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as running:
        running.answer(monkeypatch, tmp_path / "hub")
        yield running


@pytest.mark.parametrize("kind", ["EAGLE-3", "DFlash"])
def test_a_head_is_planned_by_its_headers_and_run(
    kind: str, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "EAGLE-3":
        write_eagle3(tmp_path / "head", token_ids=torch.arange(0, 96, 2))
    else:
        write_dflash(tmp_path / "head")
    hub.add("tiny/drafter", tmp_path / "head")
    target = checkpoint("llama")
    assert main(["--model", str(target), "--draft", "tiny/drafter", "--device", "cpu", "--plan"]) == 0
    assert f"{kind} head drafter" in capsys.readouterr().out
    assert not any(ranges is None for _, _, ranges in hub.asked("GET", WEIGHTS)), "of the weights only headers are read"
    with OffloadRuntime.from_pretrained(target, "tiny/drafter", device="cpu", context_length=64) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, 8)


@pytest.mark.parametrize(
    ("config", "exit_code", "named"),
    [
        ({"architectures": ["EagleLlamaForCausalLM"], **LAYER}, 3, "EAGLE-1 or EAGLE-2"),
        ({"architectures": ["LlamaForCausalLM"], **LAYER}, 3, "EAGLE-1 or EAGLE-2"),  # only its tensors tell
        ({"architectures": ["MedusaModel"], "medusa_num_heads": 3}, 3, "Medusa"),
        ({"architectures": ["LlamaForCausalLMEagle3"], **LAYER, "hidden_size": 64}, 5, "hidden states of width 64"),
    ],
)
def test_others_are_refused_before_the_weights(
    config: dict, exit_code: int, named: str, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_eagle3(tmp_path / "head")
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    hub.add("tiny/drafter", tmp_path / "head")
    arguments = ["--model", str(checkpoint("llama")), "--draft", "tiny/drafter", "--device", "cpu", "-p", "x"]
    assert main(arguments) == exit_code
    assert named in capsys.readouterr().err
    assert not any(ranges is None for _, _, ranges in hub.asked("GET", WEIGHTS))
