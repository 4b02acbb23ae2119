"""Values of a config.json that no model has are refused by name, before transformers builds anything of them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from loaders.checkpoint.config_limits import check_config
from loaders.checkpoint.read_spec import read_config
from loaders.errors import ModelFilesError, OffloadError, UnsupportedModelError
from loaders.modules.skeleton import build_skeleton
from offload_runtime.options.run_options import DEMO_TARGET
from tests.samples.tiny_models import _KINDS, BASE

DEMO = json.loads((DEMO_TARGET / "config.json").read_text())


def written(directory: Path, **changes: object) -> Path:
    (directory / "config.json").write_text(json.dumps({**DEMO, **changes}))
    return directory


WRONG = {
    "dtype": ["float4", "cuda", "", 16, [], {}, "__class__", "torch.nn"],
    "torch_dtype": ["float4"],
    "head_dim": [0, -64, 1 << 31, 1 << 20],
    "hidden_size": [0, -1, 1 << 31, 10**30],
    "num_attention_heads": [0, -4, 1 << 40],
    "num_key_value_heads": [0, -1],
    "num_hidden_layers": [0, -1, 1 << 31],
    "vocab_size": [0, -1, 10**12],
    "max_position_embeddings": [10**30, 0, -1],
    "num_labels": [1 << 31, 10**9],
    "num_local_experts": [10**9],
    "num_experts_per_tok": [10**9],
    "layer_types": [[["full_attention"]], "full_attention", [1], {"a": 1}, 5],
    "layers_block_type": [[["mamba"]], 7],
    "quantization_config": [[], "", 0, False, "awq", 5],
    "rope_scaling": ["yarn", [], 4],
    "rope_parameters": [[1]],
    "rope_theta": [0, -1, 0.0, float("inf"), float("nan"), 1e30, -1e4],
    "rms_norm_eps": [-1e-5, 1.0, float("inf")],
    "attn_logit_softcapping": [0.0, -1.0],
    "partial_rotary_factor": [0.0, -1.0, 2.0],
    "stored_layers": [[0, "a"], ["0", 1], [None], [[0]], "01", [-1], {"0": 1}],
    "text_config": [[], "x", 5],
    "initializer_range": [float("nan")],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_model_has_is_refused_by_name(name, tmp_path):
    for value in WRONG[name]:
        with pytest.raises(ModelFilesError, match=rf"config\.json: .*({name})") as caught:
            read_config(written(tmp_path, **{name: value}))
        assert len(str(caught.value)) < 600


def test_what_is_nested_is_looked_at():
    for nested in ({"rope_parameters": {"full_attention": {"rope_theta": 0}}}, {"text_config": {"head_dim": 0}}):
        with pytest.raises(ModelFilesError):
            check_config(Path("config.json"), nested)
    check_config(Path("config.json"), {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "factor": 8.0}}})


def test_layers_of_a_vision_tower_are_counted_from_its_end():
    check_config(Path("config.json"), {"vision_feature_layers": [-2, -5, -8, -11, 6]})


def test_a_layer_may_have_no_rotations():
    check_config(Path("config.json"), {"layer_rope_theta": [0, 5e5]})
    for wrong in ({"layer_rope_theta": [-1, 5e5]}, {"rope_theta": 0}):
        with pytest.raises(ModelFilesError, match="rope_theta"):
            check_config(Path("config.json"), wrong)


def test_layers_that_slide_need_a_window():
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    check_config(Path("config.json"), {**kinds, "sliding_window": 4096})
    check_config(Path("config.json"), kinds)  # the model's own default
    for window in (None, 0, "wide", 1.5):
        with pytest.raises(ModelFilesError, match="sliding_window"):
            check_config(Path("config.json"), {**kinds, "sliding_window": window})


@pytest.mark.parametrize("architecture", sorted(_KINDS))
def test_configs_of_all_architectures_pass(architecture):
    config = AutoConfig.for_model(architecture, **{**BASE, **_KINDS[architecture]})
    check_config(Path("config.json"), json.loads(config.to_json_string(use_diff=False)))


BROKEN = [{"pad_token_id": 10**6}, {"hidden_act": "\x1b[31m"}, {"rope_parameters": {"rope_type": "none"}}]


@pytest.mark.parametrize("changes", BROKEN)
def test_what_transformers_cannot_build_is_told(changes, tmp_path):
    with pytest.raises(UnsupportedModelError, match="cannot build the model") as caught:
        build_skeleton(written(tmp_path, **changes), torch.float32, "cpu", "eager")
    assert "\x1b" not in str(caught.value)


def test_tables_larger_than_memory_are_not_made(tmp_path):
    config = {"model_type": "codegen", "n_embd": 64, "n_head": 4, "rotary_dim": 16, "n_positions": 1 << 26}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OffloadError, match="tables of positions"):
        build_skeleton(tmp_path, torch.float32, "cpu", "eager")


def test_layers_that_slide_by_the_model_s_own_default_need_a_window(tmp_path):
    config = AutoConfig.for_model("gemma3_text", **{**BASE, "sliding_window": None}).to_dict()
    del config["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OffloadError, match="sliding_window is None"):
        build_skeleton(tmp_path, torch.float32, "cpu", "eager")
