"""Every decoder family in docs/architectures.md: streamed from disk and tree-decoded, its text is transformers' own.

Tiny random models in float32, under the least memory that the planner accepts. What cannot be run says so by name.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

from loaders.checkpoint.indexed import can_index, indexes
from loaders.checkpoint.read_spec import read_config
from loaders.checkpoint.refused import REFUSED, WHAT_RUNS
from loaders.errors import UnsupportedModelError
from loaders.text_part import NOT_READ
from offload_runtime import OffloadRuntime
from offload_runtime.model import attention
from scheduler.plan.plan import Tier
from tests.pass_samples import wide_tree_error
from tests.samples.architectures import ATTENTION, BORDER, BRANCHING, EXPERTS, INDEXED, STATES, SWEEP
from tests.samples.multimodal.families import TEXT_REFUSED
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, reference, streaming_runtime

NEW_TOKENS = 14
BORDERS = (
    *("sliding_window", "attention_window_size", "attention_chunk_size", "chunk_size", "mamba_chunk_size"),
    "floor_scale",
)
TREE = {"context_length": 64, "tree": "sequoia", "tree_size": 6, "tree_depth": 3}


def known(families):
    """One test for each; skipped where the installed transformers does not know the family yet."""
    unknown = pytest.mark.skip("not in the installed transformers, or otherwise")
    indexed = can_index()
    runs = {name for name in families if name in CONFIG_MAPPING and (indexed or not indexes(name))}
    return [pytest.param(name, marks=() if name in runs else unknown) for name in sorted(families)]


def streamed_text(architecture: str, draft: Path | str, **options) -> tuple[list[int], float]:
    """The new tokens, and how many came of a pass."""
    with streaming_runtime(checkpoint(architecture), draft, **options) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        return written(runtime)


def written(runtime: OffloadRuntime) -> tuple[list[int], float]:
    reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    return reply.token_ids, reply.stats.tokens_per_pass


@pytest.mark.parametrize("architecture", known({**ATTENTION, **EXPERTS, **INDEXED, **BRANCHING}))
def test_streamed_trees_write_the_models_own_text(architecture):
    target = checkpoint(architecture)
    expected = greedy(target, PROMPT, NEW_TOKENS)
    assert len(set(expected)) > 3, "a text that repeats itself proves little"
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        text, tokens_per_pass = written(runtime)
        assert text == expected and tokens_per_pass > 1
        assert wide_tree_error(runtime, reference(target)) < 1e-4


@pytest.mark.parametrize("architecture", known({**ATTENTION, **EXPERTS, **INDEXED, **BRANCHING}))
def test_texts_that_share_passes_are_the_models_own(architecture):
    target, prompts = checkpoint(architecture), [[*PROMPT], [*PROMPT[::-1], 7, 8, 9], [3, 4, 5] * 7]
    with streaming_runtime(target, perturbed(target, 0.02), parallel=len(prompts), **TREE) as runtime:
        assert runtime.parallel == len(prompts)
        replies = runtime.generate_many(prompts, max_new_tokens=8, temperature=0)
    assert [reply.token_ids for reply in replies] == [greedy(target, prompt, 8) for prompt in prompts]


@pytest.mark.parametrize("architecture", known(STATES))
def test_models_with_a_state_stream_plainly_and_say_why(architecture):
    target = checkpoint(architecture)
    text, tokens_per_pass = streamed_text(architecture, "auto", context_length=64)
    assert text == greedy(target, PROMPT, NEW_TOKENS) and tokens_per_pass == 1
    with pytest.raises(UnsupportedModelError, match=r"recurrent state, which cannot branch .*--draft none"):
        OffloadRuntime.from_pretrained(target, checkpoint("llama"), device="cpu")


@pytest.mark.parametrize("architecture", ["llama", "stablelm", "biogpt", "codegen", "ctrl", "qwen3_moe", "deepseek_v3"])
def test_branches_that_see_each_other_change_the_text(architecture, monkeypatch):
    """The control: equality comes from the mask, of models with attention of their own too."""
    mask = attention.PassRows.__post_init__

    def see_all(rows):
        mask(rows)
        rows.visible.copy_(torch.ones_like(rows.visible))

    target = checkpoint(architecture)
    monkeypatch.setattr(attention.PassRows, "__post_init__", see_all)
    text, _ = streamed_text(architecture, perturbed(target, 0.02), **TREE)
    assert text != greedy(target, PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_what_cannot_run_is_refused_by_name(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=f"{model_type} cannot be run: .*architectures.md"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 cannot be run: it is an encoder-decoder"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "gives scores for a text"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "Qwen2ForRewardModel gives scores"),
        ({"model_type": "novel_vl", "vision_config": {}}, "novel_vl cannot be run: it is multimodal"),
        ({"model_type": "llava", "text_config": {"model_type": "mpt"}}, "mpt cannot be run: it takes no positions"),
    ],
)
def test_other_kinds_are_refused_by_name(config, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=reason) as error:
        read_config(tmp_path)
    assert WHAT_RUNS in str(error.value)


@pytest.mark.parametrize("architecture", known(SWEEP))
def test_texts_go_past_every_border(architecture):
    """A window, a chunk or a scale longer than the text would leave what happens behind it untested."""
    config = AutoConfig.from_pretrained(checkpoint(architecture)).to_dict()
    if (config.get("rope_parameters") or {}).get("llama_4_scaling_beta"):
        assert config["rope_parameters"]["original_max_position_embeddings"] <= BORDER
    assert [name for name in BORDERS if (config.get(name) or 0) > BORDER] == []


def test_the_list_names_what_is_tested():
    text = (Path(__file__).resolve().parents[3] / "docs" / "architectures.md").read_text()
    by_type = text[: text.index("\n## ")]
    rows = re.findall(r"^- \*\*(.*?)\*\*.*?: (.*?)\.$", by_type, re.DOTALL | re.MULTILINE)
    named = [set(re.findall(r"`([\w.-]+)`", text)) for _, text in rows]
    multimodal = NOT_READ.keys() - TEXT_REFUSED
    assert named == [set(ATTENTION), set(EXPERTS), set(INDEXED), set(BRANCHING), set(STATES), multimodal, set(REFUSED)]


def test_nothing_is_both_tested_and_refused():
    assert len(SWEEP) >= 80 and not SWEEP.keys() & REFUSED.keys()
