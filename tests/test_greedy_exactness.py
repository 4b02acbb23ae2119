"""Greedy text is transformers' own, token for token: streamed or resident, with any tree or none.

Random models of ten architectures in float32. The drafts are another random model (useless), a copy of the target with
a little noise (accepted here and there, so that paths end in the middle of trees) and the target itself (perfect).
"""

import shutil
from pathlib import Path

import pytest
import torch

from loaders.safetensors_files import read_checkpoint
from offload_runtime import OffloadRuntime
from offload_runtime.draft import DrawnTree
from scheduler.plan import Tier
from sequoia_tree import Tree
from tests.tiny_models import (
    ARCHITECTURES,
    PROMPT,
    checkpoint,
    greedy,
    perturbed,
    reference,
    streaming_runtime,
    weights_bytes,
)

NEW_TOKENS = 64
OPTIONS = {"context_length": 128, "tree_size": 12, "tree_depth": 4}
SHARDED = {"llama", "mistral", "gemma2", "mixtral", "gpt_oss"}
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def target_of(architecture: str) -> Path:
    return checkpoint(architecture, shards=architecture in SHARDED)


def draft_of(architecture: str, kind: str) -> Path | str:
    if kind == "random":
        return checkpoint(architecture, seed=1)
    target = target_of(architecture)
    return {"none": "none", "perturbed": perturbed(target, 0.01), "itself": target}[kind]


@every_architecture
@pytest.mark.parametrize("kind", ["none", "random", "perturbed", "itself"])
def test_streamed_text_equals_generate(architecture, kind):
    target = target_of(architecture)
    expected = greedy(target, PROMPT, NEW_TOKENS)
    assert len(set(expected)) > 12, "a text that repeats itself proves little"
    with streaming_runtime(target, draft_of(architecture, kind), **OPTIONS) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == expected
    assert reply.finish_reason == "length"
    assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    assert reply.stats.streamed_bytes >= reply.stats.passes * runtime.plan.streamed_bytes > 0
    print(architecture, kind, reply.stats.tokens_per_pass)
    if kind == "none":
        assert reply.stats.tokens_per_pass == 1
    if kind == "perturbed":
        assert 1.5 < reply.stats.tokens_per_pass < 4.5
    if kind == "itself":
        assert reply.stats.tokens_per_pass > 4.5


@every_architecture
@pytest.mark.parametrize("kind", ["none", "perturbed"])
def test_resident_text_equals_generate(architecture, kind):
    target = target_of(architecture)
    with OffloadRuntime.from_pretrained(target, draft_of(architecture, kind), device="cpu", **OPTIONS) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DEVICE}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert reply.stats.streamed_bytes == 0


@every_architecture
def test_every_node_of_a_tree_sees_its_own_path_alone(architecture):
    """Twice in a row, so that the second tree stands on rows that were moved when the first one's path was kept."""
    parents = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 7, 10]  # the deepest path leaves every sliding window
    target, tree = target_of(architecture), Tree(parents)
    nodes = list(range(tree.size))
    text, generator = list(PROMPT), torch.Generator().manual_seed(0)
    with OffloadRuntime.from_pretrained(target, "none", device="cpu", context_length=128) as runtime:
        for path in ([2, 6], [1, 4, 7, 10]):
            tokens = [text[-1], *torch.randint(96, (tree.size - 1,), generator=generator).tolist()]
            logits = runtime._models.target.score(text, DrawnTree(tree, tokens, nodes))
            for node in nodes:
                alone = text + [tokens[i] for i in tree.path(node)]
                expected = reference(target)(torch.tensor([alone])).logits[0, -1]
                assert (logits[node] - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1), node
            runtime._models.target.commit(path)
            text += [*(tokens[i] for i in path), 7]


@pytest.mark.parametrize("tree", ["sequoia", "chain"])
@pytest.mark.parametrize("noise", [0.003, 0.03])
@pytest.mark.parametrize("size, depth", [(2, 1), (5, 4), (40, 3), (64, 10)])
def test_any_tree_is_exact(tree, noise, size, depth):
    target = target_of("llama")
    options = {"tree": tree, "tree_size": size, "tree_depth": depth, "context_length": 256}
    with OffloadRuntime.from_pretrained(target, perturbed(target, noise), device="cpu", **options) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert 1 < reply.stats.tokens_per_pass <= depth + 1


def large_target() -> Path:
    return checkpoint("llama", intermediate_size=6144, num_hidden_layers=16)


@pytest.mark.parametrize("resident_layers", [0, 5])
def test_a_model_larger_than_memory(resident_layers):
    """Some layers resident, the others read from disk in every pass; the files alone are larger than the cap."""
    target, draft = large_target(), checkpoint("llama", num_hidden_layers=1)
    layer_bytes = weights_bytes(target) // 16
    with streaming_runtime(target, draft, spare=(resident_layers + 1) * layer_bytes, **OPTIONS) as runtime:
        assert weights_bytes(target) > runtime.plan.device_budget
        assert runtime.plan.tiers.count(Tier.DEVICE) >= resident_layers and Tier.DISK in runtime.plan.tiers
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
        assert reply.stats.peak_device_bytes <= runtime.plan.device_budget


def test_a_prompt_longer_than_one_pass():
    """The text is read in several passes, of which the last also holds the tree."""


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
