import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import Concatenate, ConversionOps, Interleave, Transpose, WeightConverter

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.io.byte_ranges import bytes_on_disk, in_file_order
from loaders.io.sources import map_sources
from loaders.modules import conversion
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import read_checkpoint
from tests.samples.model_samples import SMALL, bound_skeleton, logits, read_source, reference, save_small_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a model of the given type in one file; saved once."""
    root = tmp_path_factory.mktemp("models")

    def save(model_type):
        if not (root / model_type).exists():
            save_small_model(model_type, root / model_type)
        return root / model_type

    return save


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of a model after `change` was applied to its tensors, a dict by name."""

    def damage(model_type, change):
        directory = tmp_path / "damaged"
        shutil.copytree(saved(model_type), directory)
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")
        return directory

    return damage


def mapped(directory, dtype=torch.float32):
    return map_sources(build_skeleton(directory, dtype, "cpu", "eager"), read_checkpoint(directory))


@pytest.mark.parametrize("model_type", SMALL)
def test_logits_equal_those_of_from_pretrained(saved, model_type):
    directory = saved(model_type)
    assert torch.equal(logits(bound_skeleton(directory).model), logits(reference(directory)))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3_moe"])
def test_shards_make_no_difference(saved, tmp_path, model_type):
    save_small_model(model_type, tmp_path, max_shard_size="30KB")
    assert len(read_checkpoint(tmp_path).files) > 4
    whole = bound_skeleton(saved(model_type)).model
    assert torch.equal(logits(bound_skeleton(tmp_path).model), logits(whole))


@pytest.mark.parametrize("stored, computed", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float16")])
def test_values_are_cast_as_from_pretrained_casts_them(tmp_path, stored, computed):
    stored, computed = getattr(torch, stored), getattr(torch, computed)
    save_small_model("deepseek_v3", tmp_path, dtype=stored)
    assert torch.equal(logits(bound_skeleton(tmp_path, computed).model), logits(reference(tmp_path, computed)))


def test_a_wrong_byte_shows(saved):
    skeleton = bound_skeleton(saved("llama"))
    before = logits(skeleton.model)
    skeleton.layers[1].module.mlp.up_proj.weight.data[0] = 0
    assert not torch.equal(logits(skeleton.model), before)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "deepseek_v3"])
def test_the_runs_of_a_unit_fill_its_buffer_once(saved, model_type):
    skeleton = build_skeleton(saved(model_type), torch.bfloat16, "cpu", "eager")
    checkpoint = read_checkpoint(saved(model_type))
    sources, embeddings_and_head = map_sources(skeleton, checkpoint)
    for layer, source in zip((*skeleton.layers, skeleton.embeddings_and_head), (*sources, embeddings_and_head)):
        written = torch.zeros(layer.layout.nbytes, dtype=torch.uint8)
        for run in source:
            length = run.nbytes // 4 * run.buffer_dtype.itemsize
            written[run.buffer_offset : run.buffer_offset + length] += 1
        for place in layer.layout.places:
            assert (written[place.offset : place.offset + place.nbytes] == 1).all(), place
        assert written.sum() == sum(place.nbytes for place in layer.layout.places)
        assert source == in_file_order(source)
    assert sum(bytes_on_disk(source) for source in (*sources, embeddings_and_head)) == checkpoint.nbytes


def test_a_layer_that_is_stored_in_one_piece_is_one_run(saved):
    (first, second), _ = mapped(saved("llama"))
    assert len(second) == 1
    assert len(first) <= 2


def test_experts_that_are_neighbours_on_disk_are_read_together(saved):
    directory = saved("qwen3_moe")
    (_, runs), _ = mapped(directory)
    (_, layer) = build_skeleton(directory, torch.float32, "cpu", "eager").layers
    of_experts = [run for run in runs if run.buffer_offset >= layer.dense_bytes]
    assert len(of_experts) == 4 * 2 and len(runs) <= 4 * 3, "gate and up of an expert are one run"


def test_a_tied_head_is_stored_under_either_name(damaged):
    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    directory = damaged("qwen2", rename)
    assert torch.equal(logits(bound_skeleton(directory).model), logits(reference(directory)))


def test_a_tied_head_is_stored_twice(damaged):
    def copy(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    directory = damaged("qwen2", copy)
    assert torch.equal(logits(bound_skeleton(directory).model), logits(reference(directory)))


def test_a_tied_head_is_stored_twice_in_two_dtypes(damaged):
    def copy(tensors):
        rounded = tensors["model.embed_tokens.weight"].bfloat16()
        tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = rounded, rounded.float()

    directory = damaged("qwen2", copy)
    skeleton = bound_skeleton(directory)
    assert "lm_head.weight" not in {place.name for place in skeleton.embeddings_and_head.layout.places}, (
        "one tensor, in one place"
    )
    assert torch.equal(logits(skeleton.model), logits(reference(directory)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [1, 1e-4])
def test_tied_tensors_with_different_values_are_two_as_in_transformers(damaged, change, dtype):
    def contradict(tensors):
        embedding = tensors["model.embed_tokens.weight"].bfloat16().float()
        tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = embedding, embedding * (1 + change)

    directory = damaged("qwen2", contradict)
    tied = change < 1 and dtype == torch.bfloat16  # what bfloat16 rounds away makes no difference there
    with (
        nullcontext() if tied else pytest.warns(UserWarning, match=r"config\.json ties lm_head\.weight to model\.embed")
    ):
        skeleton = bound_skeleton(directory, dtype)
    assert torch.equal(logits(skeleton.model), logits(reference(directory, dtype)))
    assert ("lm_head.weight" in {place.name for place in skeleton.embeddings_and_head.layout.places}) != tied


def test_a_head_alone_in_a_stale_index_is_named(damaged):
    directory = damaged("llama", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ModelFilesError, match=r"lm_head\.weight is missing, which writes the text"):
        mapped(directory)


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "mlp.up_proj.bias"])
def test_a_bias_that_the_config_does_not_declare_is_refused_unless_it_is_zero(damaged, name):
    name = f"model.layers.1.{name}"
    with pytest.raises(UnsupportedModelError, match=rf"{name}, but the model of config\.json has no such bias"):
        mapped(damaged("llama", lambda tensors: tensors.update({name: torch.tensor([0, 0.5])})))


def test_biases_of_zero_are_left_out(damaged):
    directory = damaged("llama", lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.bias": -torch.zeros(96)}))
    assert torch.equal(logits(bound_skeleton(directory).model), logits(reference(directory)))


def test_surplus_tensors_are_ignored(damaged):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(96, 64)

    directory = damaged("llama", add)
    assert torch.equal(logits(bound_skeleton(directory).model), logits(reference(directory)))


def test_a_missing_tensor_is_named(damaged):
    with pytest.raises(ModelFilesError, match=r"1 tensors are missing, the first is model\.layers\.1\.mlp\.up_proj"):
        mapped(damaged("llama", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")))


def test_a_wrong_shape_is_named(damaged):
    def shrink(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(95, 64)

    with pytest.raises(ModelFilesError, match=r"layers\.1\.mlp\.up_proj.weight must have shape \[96, 64\].*\[95, 64\]"):
        mapped(damaged("llama", shrink))


def test_a_missing_expert_is_noticed(damaged):
    with pytest.raises(ModelFilesError, match=r"layers\.1\.mlp\.experts\.down_proj must have shape \[4, .*\[3, "):
        mapped(damaged("qwen3_moe", lambda tensors: tensors.pop("model.layers.1.mlp.experts.2.down_proj.weight")))


def test_an_expert_of_another_width_is_noticed(damaged):
    def widen(tensors):
        for expert in range(4):
            tensors[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"] = torch.ones(64, 33)

    with pytest.raises(ModelFilesError, match=r"down_proj must have shape \[4, 64, 32\].*\[4, 64, 33\]"):
        mapped(damaged("qwen3_moe", widen))


def test_an_expert_of_another_height_is_noticed(damaged):
    def grow(tensors):
        tensors["model.layers.1.mlp.experts.2.down_proj.weight"] = torch.ones(65, 32)

    with pytest.raises(UnsupportedModelError, match=r"experts\.down_proj cannot be built from .*0\.down_proj"):
        mapped(damaged("qwen3_moe", grow))


def test_a_config_of_another_model_is_noticed(saved, tmp_path):
    directory = shutil.copytree(saved("llama"), tmp_path / "other")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(ModelFilesError, match="Config and weights are not of the same model"):
        mapped(directory)


class AddOne(ConversionOps):
    def convert(self, input_dict, target_patterns, **kwargs):
        return {target_patterns[0]: next(iter(input_dict.values()))[0] + 1}


def convert_up_proj(monkeypatch, operation):
    """Have transformers' mapping build every up_proj by `operation`."""
    converter = WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", [operation])
    monkeypatch.setattr(conversion, "get_model_conversion_mapping", lambda model: [converter])


@pytest.mark.parametrize(
    "operation", [Transpose(0, 1), Interleave(dim=1), AddOne()], ids=["transposed", "columns moved", "computed"]
)
def test_conversions_that_are_no_move_of_rows_are_refused(saved, monkeypatch, operation):
    convert_up_proj(monkeypatch, operation)
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.up_proj\.weight is stored transposed"):
        mapped(saved("llama"))


@pytest.mark.parametrize("operation", [Interleave(dim=0), Interleave(dim=0, inverse=True), Concatenate(dim=0)])
def test_rows_may_move(saved, monkeypatch, operation):
    stored = load_file(saved("llama") / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    moved = operation.convert({"x": [stored]}, source_patterns=["x"], target_patterns=["x"])["x"]
    convert_up_proj(monkeypatch, operation)
    skeleton = build_skeleton(saved("llama"), torch.float32, "cpu", "eager")
    sources, _ = map_sources(skeleton, read_checkpoint(saved("llama")))
    skeleton.layers[1].bind(read_source(sources[1], skeleton.layers[1].layout))
    assert torch.equal(skeleton.layers[1].module.mlp.up_proj.weight, moved)
