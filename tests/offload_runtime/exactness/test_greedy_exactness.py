"""Greedy text is transformers' own, token for token: streamed or resident, with any tree or none.

Random models of ten architectures in float32. The drafts are a random llama (useless), a copy of the target with
a little noise (accepted here and there, so that paths end in the middle of trees) and the target itself (perfect).
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders.safetensors_files.headers import read_checkpoint
from offload_runtime import OffloadRuntime
from offload_runtime.speculation.draft_tree import DraftTree
from scheduler.plan.plan import Tier
from sequoia_tree import Tree
from tests.samples.tiny_models import (
    ARCHITECTURES,
    PROMPT,
    RECURRENT,
    checkpoint,
    greedy,
    perturbed,
    reference,
    streaming_runtime,
    weights_bytes,
)

NEW_TOKENS = 48
OPTIONS = {"context_length": 128, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
SMALL_TREE = {**OPTIONS, "tree_size": 5, "tree_depth": 2}
SHARDED = {"llama", "mistral", "gemma2", "mixtral", "gpt_oss"}
TOKENS_PER_PASS = {"none": (1, 1), "random": (1, 1.5), "perturbed": (1.5, 4.5), "itself": (4.5, 5)}  # by draft
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
SLOW = pytest.mark.slow  # what `make fast` leaves out: streaming with a draft that is often right shows most mistakes


def target_of(architecture: str) -> Path:
    return checkpoint(architecture, shards=architecture in SHARDED)


def draft_of(architecture: str, kind: str) -> Path | str:
    target = target_of(architecture)
    random = checkpoint("llama", seed=1, num_hidden_layers=1)
    return {"none": "none", "random": random, "perturbed": perturbed(target, 0.02), "itself": target}[kind]


@every_architecture
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "perturbed" else SLOW) for kind in TOKENS_PER_PASS]
)
def test_streamed_text_equals_generate(architecture, kind):
    target, draft = target_of(architecture), draft_of(architecture, kind)
    expected = greedy(target, PROMPT, NEW_TOKENS)
    assert len(set(expected)) > 12, "a text that repeats itself proves little"
    options = SMALL_TREE if kind == "random" else OPTIONS
    with streaming_runtime(target, draft, **options) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    least, most = TOKENS_PER_PASS[kind]
    assert (reply.token_ids, reply.finish_reason) == (expected, "length")
    assert least <= reply.stats.tokens_per_pass <= most
    assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    assert reply.stats.streamed_bytes >= reply.stats.passes * runtime.plan.token_bytes > 0


@SLOW
@every_architecture
def test_resident_text_equals_generate(architecture):
    target, draft = target_of(architecture), draft_of(architecture, "perturbed")
    with OffloadRuntime.from_pretrained(target, draft, device="cpu", **{**OPTIONS, "tree": "auto"}) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DEVICE}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert reply.stats.streamed_bytes == 0


@SLOW
@every_architecture
def test_every_node_of_a_tree_sees_its_own_path_alone(architecture):
    """Twice in a row, so that the second tree stands on rows that were moved when the first one's path was kept."""
    parents = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 7, 10]  # the deepest path leaves every sliding window
    target, tree = target_of(architecture), Tree(parents)
    nodes, none = range(tree.size), np.full(tree.size, -1)
    text, generator = list(PROMPT), torch.Generator().manual_seed(0)
    with OffloadRuntime.from_pretrained(target, "none", device="cpu", context_length=128) as runtime:
        for path in ([2, 6], [1, 4, 7, 10]):
            tokens = [text[-1], *torch.randint(96, (tree.size - 1,), generator=generator).tolist()]
            logits = runtime._models.target.score(text, DraftTree(tree, tokens, tree.size, none, None, none))
            for node in nodes:
                alone = text + [tokens[i] for i in tree.path(node)]
                expected = reference(target)(torch.tensor([alone])).logits[0, -1]
                assert (logits[node] - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1), node
            runtime._models.target.commit(path)
            text += [*(tokens[i] for i in path), 7]


@pytest.mark.parametrize(
    "tree, size, depth",
    [
        ("chain", 9, 8),
        ("sequoia", 40, 3),
        ("sequoia", 64, 10),
        ("adaptive", 2, 1),
        ("adaptive", 24, 5),
        ("adaptive", 64, 10),
        ("chains", 20, 6),
        ("specinfer", 20, 6),
        ("topk", 20, 6),
        ("auto", 32, 8),
    ],
)
def test_any_tree_is_exact(tree, size, depth):
    target = target_of("llama")
    options = {"tree": tree, "tree_size": size, "tree_depth": depth, "context_length": 256}
    with OffloadRuntime.from_pretrained(target, draft_of("llama", "perturbed"), device="cpu", **options) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass <= depth + 1
    assert tree == "auto" or reply.stats.tokens_per_pass > 1.3


@SLOW
@pytest.mark.parametrize("spare_layers", [0, 7])
def test_a_model_larger_than_memory(spare_layers):
    """Its files alone exceed the cap; with some room to spare, resident layers alternate with streamed ones."""
    target = checkpoint("llama", intermediate_size=2048, num_hidden_layers=12)
    spare = spare_layers * weights_bytes(target) // 12
    with streaming_runtime(target, draft_of("llama", "random"), spare, **SMALL_TREE) as runtime:
        assert runtime.plan.device_budget < weights_bytes(target)
        assert (Tier.DEVICE in runtime.plan.tiers) == (spare_layers > 0) and Tier.DISK in runtime.plan.tiers
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert reply.stats.peak_device_bytes <= runtime.plan.device_budget


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_prompt_longer_than_one_pass(architecture):
    """It is read in several passes, of which the last also holds the tree."""
    target = target_of(architecture)
    prompt = torch.randint(96, (101,), generator=torch.Generator().manual_seed(0)).tolist()
    with streaming_runtime(target, draft_of(architecture, "perturbed"), **OPTIONS) as runtime:
        assert runtime.plan.rows < 50
        reply = runtime.generate(prompt, max_new_tokens=20, temperature=0)
    assert reply.token_ids == greedy(target, prompt, 20)
    assert reply.stats.streamed_bytes >= (reply.stats.passes + 3) * runtime.plan.token_bytes


@pytest.mark.parametrize("architecture", RECURRENT)
def test_recurrent_models_stream_too(architecture):
    """They cannot branch over a tree; a prompt is taken up at once, since a state continues by single tokens only."""
    target, prompt = checkpoint(architecture), PROMPT * 4
    with streaming_runtime(target, context_length=128) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, prompt, NEW_TOKENS)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_of_zeros_changes_the_text(layer, tmp_path):
    """The control: equality above comes from the bytes that are streamed, of every layer."""
    target, damaged = target_of("qwen2"), tmp_path / "damaged"
    shutil.copytree(target, damaged)
    for name, tensor in read_checkpoint(damaged).tensors.items():
        if name.startswith(f"model.layers.{layer}."):
            with tensor.file.open("r+b") as file:
                file.seek(tensor.offset)
                file.write(bytes(tensor.nbytes))
    with streaming_runtime(damaged, **OPTIONS) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids != greedy(target, PROMPT, NEW_TOKENS)
