"""Of multimodal checkpoints the tensors of the text part are planned and read, those alone, and all of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as MULTIMODAL

from loaders.checkpoint.config_defaults import DEFAULTS, NAMES
from loaders.checkpoint.read_spec import read_config, read_spec
from loaders.checkpoint.refused import REFUSED
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.modules.conversion import model_slices
from loaders.modules.row_tables import RowTable
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import StoredTensor, read_checkpoint
from loaders.text_part import NOT_READ
from tests.samples.model_samples import bound_skeleton, logits
from tests.samples.multimodal.checkpoints import checkpoint, reference
from tests.samples.multimodal.families import FAMILIES, TEXT_REFUSED, is_built
from tests.samples.tiny_models import BASE, make_checkpoint

BUILT = [name for name in FAMILIES if is_built(name)]
# One stored tensor becomes two of the model's, each at a multiple of 256 bytes.
ROUNDED = {"ernie4_5_vl_moe": 256}
# Text models that transformers counts among the multimodal ones.
TEXT_MODELS = {"mistral4"}


def all_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file, as if the model used it."""
    file = directory / "model.safetensors"
    with safe_open(file, "pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return {name: StoredTensor(name, file, "F32", shape, 0, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize("family", BUILT)
def test_the_plan_counts_what_is_read_and_nothing_else(family):
    directory = checkpoint(family)
    spec, skeleton = read_spec(directory), build_skeleton(directory, torch.float32, "cpu", "eager")
    layers = zip(spec.layers, skeleton.layers, strict=True)
    assert max(abs(one.nbytes - other.layout.nbytes) for one, other in layers) == ROUNDED.get(family, 0)
    assert spec.embeddings_and_head_bytes == skeleton.embeddings_and_head.layout.nbytes
    assert spec.vocab_size == skeleton.config.vocab_size
    assert spec.model_type == skeleton.config.model_type and spec.not_read.endswith("not read")
    used, stored = read_checkpoint(directory).tensors, all_tensors(directory)
    tables = [module for module in skeleton.model.modules() if isinstance(module, RowTable)]
    by_rows = {part.name for table in tables for part in table.parts}
    assert {part.stored.name for part in model_slices(skeleton.model, used)} | by_rows == used.keys()
    assert bool(by_rows) == (family == "qwen4_exp")
    left_out = {name: tensor for name, tensor in stored.items() if name not in used}
    assert left_out and not model_slices(skeleton.model, left_out), "an image passes through them, and no text"


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "ernie4_5_vl_moe"])
def test_what_is_stored_transposed_is_used_in_place(family):
    directory = checkpoint(family)
    skeleton = build_skeleton(directory, torch.float32, "cpu", "eager")
    places = [place for layer in skeleton.layers for place in layer.layout.places if place.transposed]
    assert places
    for place in places:
        view = place.view(torch.zeros(place.offset + place.nbytes, dtype=torch.uint8))
        assert view.shape == place.shape and view.mT.is_contiguous()


def test_tensors_that_have_the_models_shape_already_are_not_transposed(tmp_path):
    """transformers asks a tensor's shape whether its matrices are exchanged; it saves them as it uses them."""
    directory = shutil.copytree(checkpoint("qwen3_vl_moe"), tmp_path / "copy")
    expected = logits(bound_skeleton(directory).model)
    tensors = load_file(directory / "model.safetensors")
    natural = {name: tensor.mT.contiguous() for name, tensor in tensors.items() if ".mlp.experts." in name}
    save_file(tensors | natural, directory / "model.safetensors", {"format": "pt"})
    skeleton = bound_skeleton(directory)
    assert not any(place.transposed for layer in skeleton.layers for place in layer.layout.places)
    torch.testing.assert_close(logits(skeleton.model), expected, atol=1e-4, rtol=1e-4)


def test_an_exchanged_tensor_in_the_wrong_place_changes_the_logits(monkeypatch):
    """The control: with the views as other tensors have them, every expert's matrix is garbage."""
    directory = checkpoint("qwen3_vl_moe")
    theirs = logits(reference(directory))
    torch.testing.assert_close(logits(bound_skeleton(directory).model), theirs, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr("loaders.modules.skeleton.transposed_names", lambda model, tensors: set())
    assert (logits(bound_skeleton(directory).model) - theirs).abs().max() > 1e-2


@pytest.mark.parametrize("text_type", [name for name in DEFAULTS if name in CONFIG_MAPPING])
def test_defaults_are_those_of_transformers(text_type):
    config = CONFIG_MAPPING[text_type]()
    assert DEFAULTS[text_type] == tuple(getattr(config, name) for name in NAMES)


def test_what_a_nested_config_leaves_out_is_known(tmp_path):
    """As in the config.json of Gemma 3 4B, which states what differs from transformers' defaults."""
    directory = shutil.copytree(checkpoint("gemma3"), tmp_path / "copy")
    config = json.loads((directory / "config.json").read_text())
    for name in ("num_attention_heads", "max_position_embeddings", "vocab_size"):
        config["text_config"].pop(name)
    (directory / "config.json").write_text(json.dumps(config))
    spec = read_spec(directory)
    assert (spec.num_heads, spec.max_positions, spec.vocab_size) == (8, 131072, BASE["vocab_size"])
    config.pop("text_config")
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesError, match="must be a positive number"):
        read_spec(directory)


def test_gemma3n_is_run_by_the_class_of_its_text_model(tmp_path):
    """The class of the whole model asks its vision encoder about every token, and needs the package timm for it."""
    changes = {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 3}
    text = make_checkpoint("gemma3n_text", 2, False, changes)
    tensors = load_file(text / "model.safetensors")
    whole = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    assert not tensors.keys() & {name for name in whole if name.startswith("model.")}
    whole |= {"model.vision_tower.blocks.0.0.conv.weight": torch.ones(5, 5), "model.embed_audio.norm": torch.ones(5)}
    config = {"model_type": "gemma3n", "text_config": json.loads((text / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(whole, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_spec(tmp_path).disk_bytes == read_spec(text).disk_bytes
    theirs = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32, attn_implementation="eager").eval()
    torch.testing.assert_close(logits(bound_skeleton(tmp_path).model), logits(theirs))


@pytest.mark.parametrize("family", sorted(TEXT_REFUSED & MULTIMODAL.keys()))
def test_families_whose_text_model_is_refused_are_refused(family, tmp_path):
    text = AutoConfig.for_model(family).get_text_config(decoder=True).model_type
    assert text in REFUSED
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "text_config": {"model_type": text}}))
    with pytest.raises(UnsupportedModelError, match=r"cannot be run: .*architectures\.md"):
        read_config(tmp_path)


def test_every_multimodal_family_of_transformers_is_run_or_refused():
    assert MULTIMODAL.keys() - NOT_READ.keys() - REFUSED.keys() - TEXT_MODELS == set()
    assert TEXT_MODELS.isdisjoint(CAUSAL)


@pytest.mark.parametrize("text", [{"model_type": ["llama"]}, {"model_type": None}, {"cross_attention_layers": "all"}])
def test_a_nested_config_may_hold_anything(tmp_path, text):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert read_config(tmp_path)["model_type"] == "llava"
    with pytest.raises(ModelFilesError, match="neither model"):
        read_checkpoint(tmp_path)
