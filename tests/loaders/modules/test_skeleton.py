import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from loaders.checkpoint.read_spec import read_spec
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.modules.buffers import COMPUTED
from loaders.modules.skeleton import build_skeleton, make_parameters
from tests.samples.model_samples import SMALL, reference, save_small_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, streaming_runtime


def config_directory(directory, base, **changes):
    """A directory that holds a config and nothing else: a skeleton needs no weights."""
    config = CONFIG_MAPPING[base](**SMALL.get(base, {})).to_dict() | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def build(directory, dtype=torch.float32):
    return build_skeleton(directory, dtype, "cpu", "eager")


def fill_with_ones(layer):
    parameters = make_parameters(layer.layout, torch.zeros(layer.layout.nbytes, dtype=torch.uint8))
    for parameter in parameters:
        parameter.fill_(1)
    return parameters


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v3", "gpt_neox"])
def test_only_computed_buffers_have_values_and_they_are_right(tmp_path, model_type):
    save_small_model(model_type, tmp_path)
    skeleton, expected = build(tmp_path), reference(tmp_path)
    assert all(tensor.is_meta for tensor in skeleton.model.state_dict().values())
    computed = dict(skeleton.model.named_non_persistent_buffers())
    assert computed.keys() == dict(expected.named_non_persistent_buffers()).keys() and computed
    for name, buffer in computed.items():
        assert torch.equal(buffer, expected.get_buffer(name)) and buffer.dtype == expected.get_buffer(name).dtype
    assert not skeleton.model.training


def test_units_are_the_decoder_layers_and_outer_is_the_rest(tmp_path):
    skeleton = build(config_directory(tmp_path, "llama"))
    assert [layer.name for layer in skeleton.layers] == ["model.layers.0", "model.layers.1"]
    assert [layer.module for layer in skeleton.layers] == list(skeleton.model.model.layers)
    assert "self_attn.q_proj.weight" in [place.name for place in skeleton.layers[0].layout.places]
    assert [place.name for place in skeleton.embeddings_and_head.layout.places] == [
        "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
    ]  # fmt: skip
    assert skeleton.config.num_hidden_layers == 2


def test_a_head_that_is_tied_has_one_place_and_stays_one_tensor(tmp_path):
    skeleton = build(config_directory(tmp_path, "qwen2"))
    assert [place.name for place in skeleton.embeddings_and_head.layout.places] == [
        "model.embed_tokens.weight",
        "model.norm.weight",
    ]
    assert dict(skeleton.tied) == {"lm_head.weight": "model.embed_tokens.weight"}
    skeleton.embeddings_and_head.bind(fill_with_ones(skeleton.embeddings_and_head))
    model = skeleton.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta and model.lm_head.weight.sum() == 96 * 64


def test_equal_layouts_share_parameters(tmp_path):
    first, second = build(config_directory(tmp_path, "llama")).layers
    assert first.layout == second.layout
    parameters = fill_with_ones(first)
    first.bind(parameters)
    second.bind(parameters)
    assert first.module.mlp.up_proj.weight is second.module.mlp.up_proj.weight
    assert not second.module.mlp.up_proj.weight.requires_grad
    assert not any(tensor.is_meta for tensor in second.module.state_dict().values())


def test_layers_of_two_kinds_have_two_layouts(tmp_path):
    dense, sparse = build(config_directory(tmp_path, "deepseek_v3")).layers
    assert dense.layout != sparse.layout
    assert "mlp.gate.e_score_correction_bias" in [place.name for place in sparse.layout.places]
    sparse.bind(fill_with_ones(sparse))
    assert sparse.module.mlp.gate.e_score_correction_bias.sum() == 4


def test_what_transformers_keeps_in_float32_stays_float32(tmp_path):
    _, sparse = build(config_directory(tmp_path, "deepseek_v3"), torch.bfloat16).layers
    kept = [place.name for place in sparse.layout.places if place.dtype == torch.float32]
    assert kept == ["mlp.gate.e_score_correction_bias"]


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("t5", {}, "encoder-decoder"),
        ("bert", {}, "bert is not a decoder-only language model"),
        ("vit", {}, "vit is not a decoder-only language model"),
        ("llama", {"vision_config": {}}, "multimodal"),
        ("llama", {"quantization_config": {"quant_method": "hqq"}}, r"packed as 'hqq'"),
        ("llama", {"model_type": "homemade", "auto_map": {"AutoConfig": "x.Y"}}, "no model type 'homemade'.*never run"),
        ("llama", {"hidden_size": "wide"}, "cannot build the model of this config.json"),
        ("llama", {"hidden_act": "gulu"}, "cannot build the model of this config.json"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, base, changes, message):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        build(config_directory(tmp_path, base, **changes))
    assert str(tmp_path) in str(caught.value)


def test_code_beside_a_known_model_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    assert len(build(config_directory(tmp_path, "llama", auto_map=auto_map)).layers) == 2


def test_no_config(tmp_path):
    with pytest.raises(ModelFilesError, match=r"config\.json: no such file"):
        build(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decays_that_files_lack_are_computed_as_transformers_does(tmp_path, dtype):
    """MiniMax's, which files of its publisher need not hold; the text is that of the files that do."""
    target = shutil.copytree(checkpoint("minimax"), tmp_path / "model")
    tensors = load_file(target / "model.safetensors")
    decays = {name for name in tensors if name.rpartition(".")[2] in COMPUTED}
    assert len(decays) == 2 * 4
    save_file({name: t for name, t in tensors.items() if name not in decays}, target / "model.safetensors")
    expected = AutoModelForCausalLM.from_pretrained(target, dtype=getattr(torch, dtype))
    skeleton = build(target, getattr(torch, dtype))
    found = dict(skeleton.model.named_non_persistent_buffers())
    for name in decays:
        assert (
            torch.equal(found[name], expected.get_buffer(name)) and found[name].dtype == expected.get_buffer(name).dtype
        )
    assert [layer.nbytes for layer in read_spec(target, dtype).layers] == [
        layer.layout.nbytes for layer in skeleton.layers
    ]
    if dtype == "float32":
        with streaming_runtime(target, context_length=64, tree="sequoia", tree_size=8, tree_depth=3) as runtime:
            reply = runtime.generate(PROMPT, max_new_tokens=24, temperature=0)
        assert reply.token_ids == greedy(checkpoint("minimax"), PROMPT, 24)
