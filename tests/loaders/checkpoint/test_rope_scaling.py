"""How far scaled rotations extend a context, and scaling that a user sets."""

import json
import math
import shutil

import pytest
from transformers import CONFIG_MAPPING

from loaders.checkpoint.rope_scaling import NO_POSITION_LIMIT, NOT_ROTARY, RopeScaling, extended_positions
from loaders.errors import UnsupportedModelError
from offload_runtime import OffloadRuntime
from offload_runtime.errors import PromptError, UsageError
from offload_runtime.options.arguments import model_options, parse_chat_arguments
from tests.samples.architectures import SWEEP
from tests.samples.tiny_models import PROMPT, checkpoint, greedy

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    "config, positions",
    [
        ({"rope_scaling": YARN}, 256),
        ({"rope_parameters": YARN}, 256),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 256),
        ({"rope_scaling": {**YARN, "factor": 2.5}}, 160),
        ({"rope_scaling": {**YARN, "factor": None}}, 64),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 128}, 512),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 128),
        ({"rope_scaling": {"type": "dynamic", "factor": 3.0}}, 192),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": DEFAULT}, 128),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 128),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}}, 64),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0, "long_factor": [], "short_factor": []}}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "long_factor": [], "short_factor": []}}, 64),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}}, 256),
        ({"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": YARN}}, 64),
        ({"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": DEFAULT}, "rope_scaling": YARN}, 256),
        ({"rope_parameters": {"full_attention": None, "sliding_attention": YARN}}, 64),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 64),
        ({"model_type": "gemma3_text", "rope_scaling": YARN}, 256),
        ({"model_type": "gpt2", "rope_scaling": YARN}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": math.inf}}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": math.nan}}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, 64),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e300}}, NO_POSITION_LIMIT),
        ({"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, NO_POSITION_LIMIT),
        ({"rope_scaling": "yarn"}, 64),
        ({"rope_scaling": {"rope_type": ["yarn"], "factor": 4.0}}, 64),
        ({}, 64),
    ],
)
def test_what_a_config_allows(config, positions):
    assert extended_positions({"model_type": "llama", **config}, 64)[0] == positions


def test_families_without_rotations_are_those_of_transformers():
    known = [name for name in SWEEP if name in CONFIG_MAPPING]
    assert {name for name in known if not hasattr(CONFIG_MAPPING[name](), "rope_parameters")} == NOT_ROTARY & {*known}


@pytest.mark.parametrize(
    "text, values",
    [
        ("yarn:4", {"rope_type": "yarn", "factor": 4.0}),
        ("yarn:2.5:32768", {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 32768}),
        ("none", {"rope_type": "default"}),
        ('{"type": "linear", "factor": 2}', {"rope_type": "linear", "factor": 2}),
        ({"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
def test_scaling_is_read(text, values):
    assert dict(RopeScaling.parse(text).values) == values


@pytest.mark.parametrize(
    "text",
    [
        *("", "yarn", "yarn:", "yarn:x", "yarn:0.5", "yarn:inf", "yarn:nan", "yarn:4:0", "yarn:4:5:6", "longrope:4"),
        *("{", "{}", '{"rope_type": "yarn"}', '{"rope_type": "yarn", "factor": 4, "colour": 1}', "[" * 99_999),
        *('{"rope_type": ["yarn"]}', '{"rope_type": "yarn", "factor": 4, "beta_fast": "x"}', "{" * 99_999),
    ],
)
def test_what_is_no_scaling_is_refused(text):
    with pytest.raises(UsageError, match=r"^rope_scaling: "):
        OffloadRuntime.from_pretrained(checkpoint("qwen3"), "none", rope_scaling=text)


def test_the_command_line_sets_it():
    arguments = parse_chat_arguments(["--rope-scaling", "yarn:4:64"])
    assert dict(model_options(arguments).rope_scaling.values) == YARN
    with pytest.raises(SystemExit):
        parse_chat_arguments(["--rope-scaling", "yarn"])


LONG_PROMPT = [*PROMPT, *range(10, 80)]


@pytest.mark.parametrize(
    "architecture, scaling",
    [
        ("qwen3", "yarn:4"),
        ("qwen3", "linear:2"),
        ("llama", "dynamic:3"),
        ("gemma3_text", "yarn:2"),
        ("olmo3", "yarn:4"),
    ],
)
def test_a_set_scaling_is_that_of_a_changed_config(architecture, scaling, tmp_path):
    """The same as what transformers makes of the config that states it; of full attention where layer types differ."""
    source = checkpoint(architecture, max_position_embeddings=64)
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    stated = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    theta = stated["rope_theta"]
    stated.clear()
    stated.update({"rope_theta": theta, **dict(RopeScaling.parse(scaling).values)})
    if stated["rope_type"] == "yarn":
        stated["original_max_position_embeddings"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with OffloadRuntime.from_pretrained(source, source, device="cpu", rope_scaling=scaling, tree_size=8) as runtime:
        assert runtime.context_length == 64 * stated["factor"]
        draft = runtime._preparation.draft
        assert draft is not None and draft.spec.max_positions == runtime.context_length
        reply = runtime.generate(LONG_PROMPT, max_new_tokens=12, temperature=0)
    assert reply.token_ids == greedy(tmp_path, LONG_PROMPT, 12) != greedy(source, LONG_PROMPT, 12)


def test_scaling_can_be_taken_away(tmp_path):
    scaled = checkpoint("qwen3", max_position_embeddings=64)
    shutil.copytree(scaled, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"rope_scaling": {"rope_type": "linear", "factor": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with OffloadRuntime.from_pretrained(tmp_path, "none", device="cpu", rope_scaling="none") as runtime:
        assert runtime.context_length == 64
        assert runtime.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids == greedy(scaled, PROMPT, 12)


def test_models_without_rotations_refuse_it():
    with pytest.raises(UnsupportedModelError, match="gpt2 has no rotary positions"):
        OffloadRuntime.from_pretrained(checkpoint("gpt2"), "none", rope_scaling="yarn:4")


def test_families_that_are_not_known_refuse_it_when_they_are_loaded(monkeypatch):
    monkeypatch.setattr("loaders.checkpoint.rope_scaling.NOT_ROTARY", set())
    with pytest.raises(UnsupportedModelError, match="gpt2 has no rotary positions"):
        OffloadRuntime.from_pretrained(checkpoint("gpt2"), "none", device="cpu", rope_scaling="yarn:4")


def test_messages_name_the_true_limit(tmp_path):
    shutil.copytree(checkpoint("qwen3", max_position_embeddings=64), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"rope_scaling": {**YARN, "rope_theta": 1e4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    limit = r"256 \(64, extended 4 times by yarn scaling\)"
    with pytest.raises(UsageError, match=rf"300 .*{limit}.*\n  --context-length 256 .*\n  --rope-scaling yarn:2 "):
        OffloadRuntime.from_pretrained(tmp_path, "none", device="cpu", context_length=300)
    runtime = OffloadRuntime.from_pretrained(tmp_path, "none", device="cpu")
    with runtime, pytest.raises(PromptError, match=rf"made for {limit} tokens"):
        runtime.generate([5] * 256)
