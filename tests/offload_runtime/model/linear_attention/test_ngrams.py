"""Layers that look up n-grams of tokens: over trees, around end tokens, in tables that stay on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from loaders.checkpoint.read_spec import read_spec
from loaders.errors import ModelFilesError
from loaders.modules.skeleton import build_skeleton
from offload_runtime import OffloadRuntime
from offload_runtime.model.linear_attention import ngrams
from offload_runtime.model.linear_attention.convolutions import over_windows
from offload_runtime.model.linear_attention.states import Branches
from tests.samples.architectures import BRANCHING
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

ARCHITECTURE = "qwen4_exp_text"
END = BRANCHING[ARCHITECTURE]["eos_token_id"]
TREE = {"context_length": 160, "tree": "sequoia", "tree_size": 16, "tree_depth": 5}
PROMPTS = [[*PROMPT], [END, END, 5, END], [7, END, 9, 11], [END], [3]]


def texts(**options: Any) -> list[list[int]]:
    target = checkpoint(ARCHITECTURE)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE, **options) as runtime:
        return [runtime.generate(prompt, max_new_tokens=40, temperature=0).token_ids for prompt in PROMPTS]


def test_texts_around_end_tokens_are_the_models_own() -> None:
    target = checkpoint(ARCHITECTURE)
    assert texts() == [greedy(target, prompt, 40) for prompt in PROMPTS]


def in_the_order_of_rows(self: Branches, width: int) -> Tensor:
    """As if every node continued the one before it."""
    nodes = torch.arange(len(self.parents) - self.count, len(self.parents))
    return nodes[:, None] - torch.arange(width - 1, -1, -1)


def of_rows(*args: Any, **kwargs: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Branches, "windows", in_the_order_of_rows)
        return over_windows(*args, **kwargs)


def through_end_tokens(
    current: Any, inputs: Tensor, width: int, of_text: Any, of_nodes: Any, before: float = 0
) -> Tensor:
    def nodes(seen: Tensor) -> Tensor:
        return of_nodes(seen) if seen.is_floating_point() else seen[:, :, 0]

    return over_windows(current, inputs, width, of_text, nodes, before)


@pytest.mark.parametrize("wrong", [of_rows, through_end_tokens])
def test_windows_that_leave_the_path_or_cross_an_end_are_seen(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = checkpoint(ARCHITECTURE)
    monkeypatch.setattr(ngrams, "over_windows", wrong)
    assert texts() != [greedy(target, prompt, 40) for prompt in PROMPTS]


def table_bytes(directory: Path) -> int:
    with safe_open(directory / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if ".ngram_embedding." in name]  # noqa: SIM118  # no dictionary
        return sum(file.get_tensor(name).nbytes for name in names)


def test_tables_are_no_part_of_layers() -> None:
    """Neither of the plan's layers nor of those that are built."""
    directory = checkpoint(ARCHITECTURE)
    spec, skeleton = read_spec(directory), build_skeleton(directory, torch.float32, "cpu")
    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert table_bytes(directory) > 20_000
    assert [layer.nbytes for layer in spec.layers] == [layer.layout.nbytes for layer in skeleton.layers]
    assert sum(layer.disk_bytes for layer in spec.layers) < stored - table_bytes(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ngram_vocab_size_base": 211}, "ngram_embedding must have shape .* by config.json"),
        ({"ple_embed_dim": 64}, "ngram_embedding must have shape .* by config.json"),
        ({"heads_per_ngram": 1 << 20}, "heads_per_ngram is 1048576"),
        ({"ple_layer_ids": [1] * 200}, "at most 256 heads"),
        ({"ple_layer_ids": 1}, "a list of layers"),
    ],
)
def test_configs_that_do_not_fit_the_table_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    shutil.copytree(checkpoint(ARCHITECTURE), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelFilesError, match=message):
        OffloadRuntime.from_pretrained(tmp_path, "none", device="cpu")
