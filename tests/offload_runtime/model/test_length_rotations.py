"""Texts past the length at which rotations change, over trees and in conversations, are those of transformers alone."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM

from offload_runtime import OffloadRuntime
from offload_runtime.model.length_rotations import TextLengths
from tests.samples.tiny_models import PROMPT, checkpoint, perturbed

BORDER = 20
NEW_TOKENS = 24
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONG = {
    **{"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": BORDER},
    **{"short_factor": [1.0, 1.5, 1.0, 1.0], "long_factor": [2.0, 3.0, 4.0, 5.0]},
}
BEYOND = [(7 * i * i) % 90 + 5 for i in range(BORDER + 9)]  # a prompt that is longer than the border
PROMPTS = [list(PROMPT), BEYOND]
MODELS = [
    *(("llama", DYNAMIC), ("deepseek_v3", DYNAMIC), ("llama4_text", DYNAMIC), ("falcon_h1", DYNAMIC)),
    *(("llama", LONG), ("phi3", LONG), ("phimoe", {**LONG, "short_mscale": 1.1, "long_mscale": 1.3})),
    *(("gemma3_text", DYNAMIC), ("olmo3", LONG)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Makes the directory of a model whose config states `scaling`, of full attention where layer types differ."""

    def make(architecture, scaling):
        directory = tmp_path_factory.mktemp(architecture)
        shutil.copytree(checkpoint(architecture), directory, dirs_exist_ok=True)
        config = json.loads((directory / "config.json").read_text())
        parameters = config.pop("rope_parameters")
        own = parameters.get("full_attention", parameters)
        bare = {name: own[name] for name in ("rope_theta", "partial_rotary_factor") if name in own}
        own.clear()
        own.update(bare | scaling)
        config["rope_parameters"] = parameters
        longest = 512 if scaling["rope_type"] == "longrope" else BORDER
        config |= {"max_position_embeddings": longest}
        if architecture == "phi3":
            config["original_max_position_embeddings"] = BORDER
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


def expected(directory, prompt):
    """A model that was not asked anything before: dynamic rotations remember the longest text."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    return model.generate(ids, **options)[0, len(prompt) :].tolist()


def started(directory):
    tree = {"tree": "sequoia", "tree_size": 8, "tree_depth": 4}
    return OffloadRuntime.from_pretrained(
        directory, perturbed(directory, 0.02), device="cpu", context_length=72, **tree
    )


def generated(runtime, prompt):
    return runtime.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0).token_ids


@pytest.mark.parametrize("architecture, scaling", MODELS)
def test_texts_are_the_models_own(model, architecture, scaling):
    """Across the border while the reply is written, and behind it from the prompt on."""
    directory = model(architecture, scaling)
    with started(directory) as runtime:
        for prompt in PROMPTS:
            assert generated(runtime, prompt) == expected(directory, prompt)
            assert runtime.last_reply.stats.tokens_per_pass > 1.3


@pytest.mark.parametrize("scaling", [DYNAMIC, LONG])
def test_a_conversation_reads_again_what_was_rotated_for_another_length(model, scaling):
    directory = model("llama", scaling)
    turns = [BEYOND[: BORDER - 8], BEYOND[: BORDER - 2], BEYOND[: BORDER + 2], BEYOND, BEYOND[:5]]
    with started(directory) as runtime:
        for prompt in turns:
            assert generated(runtime, prompt) == expected(directory, prompt)


def test_replies_that_take_turns_keep_their_own_lengths(model):
    directory = model("llama", DYNAMIC)
    arguments = {"max_new_tokens": NEW_TOKENS, "temperature": 0}
    with started(directory) as runtime:
        streams = [runtime.stream(prompt, **arguments) for prompt in PROMPTS]
        texts = [[], []]
        for _ in range(NEW_TOKENS):
            for text, stream in zip(texts, streams):
                text += [token for step in [next(stream, None)] if step for token in step.token_ids]
    assert texts == [expected(directory, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("architecture, scaling", [("llama", DYNAMIC), ("phi3", LONG)])
def test_one_length_for_a_whole_pass_changes_the_text(model, architecture, scaling, monkeypatch):
    """The control: without lengths of their own, the furthest node would rotate all rows of its pass."""
    directory = model(architecture, scaling)
    monkeypatch.setattr(TextLengths, "begin_pass", lambda self, end: None)
    with started(directory) as runtime:
        assert [generated(runtime, prompt) for prompt in PROMPTS] != [expected(directory, p) for p in PROMPTS]


def test_rows_within_the_border_are_rotated_once(model, monkeypatch):
    with started(model("llama", LONG)) as runtime:
        monkeypatch.setattr(TextLengths, "of_rows", lambda self, positions: pytest.fail("a row past the border"))
        runtime.generate(PROMPT[:8], max_new_tokens=3, temperature=0)


@pytest.mark.parametrize(("context_length", "texts"), [(72, 1), (BORDER - 2, 3)])
def test_texts_share_passes_up_to_the_border(context_length, texts, model):
    directory = model("llama", LONG)
    options = {"device": "cpu", "context_length": context_length, "parallel": 3}
    turns = pytest.warns(UserWarning, match="1 of 3 texts at a time: they take turns") if texts == 1 else nullcontext()
    with turns:
        runtime = OffloadRuntime.from_pretrained(directory, "none", **options)
    with runtime:
        assert runtime.parallel == texts
        prompts = [list(PROMPT)[:4], list(PROMPT)[3:8], [7, 8]]
        replies = runtime.generate_many(prompts, max_new_tokens=6, temperature=0)
    assert [reply.token_ids for reply in replies] == [expected(directory, prompt)[:6] for prompt in prompts]
