"""Multimodal families: streamed from disk and tree-decoded, their text is that of transformers' own class.

Tiny random models in float32, under the least memory that the planner accepts. `generate` gets token ids alone, too.
"""

from pathlib import Path

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.model import attention
from scheduler.plan.plan import Tier
from tests.fakes.recorded_work import RecordedWork
from tests.pass_samples import PADDING, largest_difference, loaded, passes, wide_tree_error
from tests.samples.architectures import BORDER
from tests.samples.multimodal.checkpoints import checkpoint, greedy, perturbed, reference
from tests.samples.multimodal.families import FAMILIES, RECURRENT, is_built
from tests.samples.tiny_models import PROMPT, streaming_runtime

NEW_TOKENS = 14
TREE = {"context_length": 128, "tree": "sequoia", "tree_size": 6, "tree_depth": 3}
# Rotary positions in rows, sliding windows, chunks, latent attention, experts stored transposed.
LONGER = ("gemma3", "glm4v_moe", "glm5_next", "kimi_k25", "llama4", "mistral3", "qwen2_5_vl", "qwen3_5", "qwen3_vl_moe")


def known(families):
    """One test for each; skipped where the installed transformers does not know the family yet."""
    unknown = pytest.mark.skip("not in the installed transformers")
    return [pytest.param(name, marks=() if is_built(name) else unknown) for name in families]


def runtime_of(family: str) -> OffloadRuntime:
    """With trees from a draft that is often right, but for models that cannot branch."""
    target = checkpoint(family)
    draft: Path | str = "none" if family in RECURRENT else perturbed(target, 0.02)
    return streaming_runtime(target, draft, **TREE)


@pytest.mark.parametrize("family", known(FAMILIES))
def test_the_text_is_that_of_the_whole_model(family):
    target = checkpoint(family)
    expected = greedy(target, PROMPT, NEW_TOKENS)
    assert len(set(expected)) > 3, "a text that repeats itself proves little"
    with runtime_of(family) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK} and "not read" in runtime.plan.not_read
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.token_ids == expected
        if family not in RECURRENT:
            assert reply.stats.tokens_per_pass > 1
            assert wide_tree_error(runtime, reference(target)) < 1e-4


@pytest.mark.parametrize("family", known(LONGER))
def test_long_texts_go_on_over_every_border(family):
    target = checkpoint(family)
    prompts = [list(range(3, 3 + BORDER + more)) for more in (-1, 0, 1)]
    with runtime_of(family) as runtime:
        for prompt in prompts:
            reply = runtime.generate(prompt, max_new_tokens=64, temperature=0)
            assert reply.token_ids == greedy(target, prompt, 64)


@pytest.mark.parametrize("family", known(["qwen2_5_vl", "gemma3"]))
def test_texts_that_share_passes(family):
    target, prompts = checkpoint(family), [[*PROMPT], [*PROMPT[::-1], 7, 8, 9], [3, 4, 5] * 7]
    with streaming_runtime(target, perturbed(target, 0.02), parallel=len(prompts), **TREE) as runtime:
        replies = runtime.generate_many(prompts, max_new_tokens=8, temperature=0)
    assert [reply.token_ids for reply in replies] == [greedy(target, prompt, 8) for prompt in prompts]


@pytest.mark.parametrize("family", known(["gemma3", "llama4", "mistral3", "qwen2_5_vl", "qwen3_vl_moe"]))
def test_passes_can_be_replayed(family):
    """As CUDA graphs: nothing in the class of the whole model asks the device what a token is."""
    with loaded(checkpoint(family)) as model:
        expected = passes(model)
        recorded = RecordedWork()
        model.pad_passes(PADDING, recorded)
        ours = passes(model)
        assert model.replays and recorded.replays
    assert largest_difference(ours, expected) <= 1e-5


@pytest.mark.parametrize("family", known(["qwen2_5_vl", "gemma3", "llama4"]))
def test_branches_that_see_each_other_change_the_text(family, monkeypatch):
    """The control: equality comes from the mask and the positions of the text model."""
    mask = attention.PassRows.__post_init__

    def see_all(rows):
        mask(rows)
        rows.visible.fill_(True)

    monkeypatch.setattr(attention.PassRows, "__post_init__", see_all)
    with runtime_of(family) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids != greedy(checkpoint(family), PROMPT, NEW_TOKENS)
