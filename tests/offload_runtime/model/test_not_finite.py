"""Weights that are NaN or infinite: no text comes of a target that has them, and a draft that has them is left out."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offload_runtime import OffloadRuntime
from offload_runtime.errors import ModelFilesError
from tests.offload_runtime.speculation.test_automatic_tree import link_bound, set_times
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

OPTIONS = {"context_length": 64, "tree_size": 6, "tree_depth": 2}
NEW_TOKENS = 8
DOWN, HEAD, EMBEDDING = "model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.embed_tokens.weight"


def damaged(source: Path, directory: Path, name: str, value: float) -> Path:
    """A copy of a model with one tensor full of `value`."""
    shutil.copytree(source, directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "name, told",
    [
        (DOWN, "layer 1 is the first to give .* holds some in mlp.down_proj.weight"),
        (HEAD, "head"),
        (EMBEDDING, "embeddings"),
    ],
)
def test_a_target_of_which_no_token_can_be_told(name, told, value, streamed, tmp_path):
    model = damaged(checkpoint("llama"), tmp_path / "damaged", name, value)
    options = {**OPTIONS, "tree": "sequoia"}
    draft = perturbed(checkpoint("llama"), 0.02)
    open_runtime = streaming_runtime if streamed else OffloadRuntime.from_pretrained
    with open_runtime(model, draft, **({} if streamed else {"device": "cpu"}), **options) as runtime:
        for _ in range(2):  # the second time the caches hold nothing of the first
            with pytest.raises(ModelFilesError, match=told):
                runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("tree", ["none", "sequoia", "adaptive", "specinfer", "topk"])
def test_every_tree_and_rule_notices(tree, temperature, tmp_path):
    model = damaged(checkpoint("llama"), tmp_path / "damaged", DOWN, torch.nan)
    draft = "none" if tree == "none" else perturbed(checkpoint("llama"), 0.02)
    with (
        OffloadRuntime.from_pretrained(model, draft, device="cpu", tree=tree, **OPTIONS) as runtime,
        pytest.raises(ModelFilesError, match="layer 1"),
    ):
        runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=temperature)


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "specinfer", "topk", "auto"])
def test_a_draft_without_numbers_is_left_out(tree, temperature, tmp_path):
    model = checkpoint("llama")
    draft = damaged(perturbed(model, 0.02), tmp_path / "damaged", DOWN, torch.nan)
    with (
        OffloadRuntime.from_pretrained(model, draft, device="cpu", tree=tree, **OPTIONS) as runtime,
        pytest.warns(UserWarning, match="draft computes values that are not finite .layer 1") as caught,
    ):
        if tree == "auto":  # the clock must not choose plain decoding
            set_times(runtime, link_bound)
        for _ in range(2):
            reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=temperature)
            assert reply.stats.drafted == 0 and len(reply.token_ids) == NEW_TOKENS
            if temperature == 0:
                assert reply.token_ids == greedy(model, PROMPT, NEW_TOKENS)
    assert len(caught) == 1, "once is enough"


def test_numbers_that_float16_cannot_hold(tmp_path):
    """Finite weights whose products are not; computed in float32 there is a text."""
    source = checkpoint("llama")
    directory = tmp_path / "large"
    shutil.copytree(source, directory)
    file = directory / "model.safetensors"
    tensors = {name: tensor * 600 if "layers.0.mlp" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with (
        OffloadRuntime.from_pretrained(directory, "none", device="cpu", dtype="float16", context_length=64) as runtime,
        pytest.raises(ModelFilesError, match=r"(?s)layer 0 is the first to give.*float32"),
    ):
        runtime.generate(PROMPT, max_new_tokens=2, temperature=0)
    with OffloadRuntime.from_pretrained(directory, "none", device="cpu", dtype="float32", context_length=64) as runtime:
        assert len(runtime.generate(PROMPT, max_new_tokens=2, temperature=0).token_ids) == 2
