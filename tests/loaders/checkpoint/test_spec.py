import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.checkpoint.read_spec import NO_POSITION_LIMIT, read_config, read_spec
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import read_checkpoint
from tests.samples.model_samples import SMALL, save_small_model
from tests.samples.tiny_models import checkpoint, reference

# Numbers cached per token by all layers: two layers of 2 × 2 heads of 16, where nothing else is said.
CACHED = {"gpt_neox": 256, "gpt2": 256, "deepseek_v3": 2 * (16 + 8), "qwen3_next": 64, "mamba2": 0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    save_small_model("llama", directory)
    return directory


@pytest.fixture
def changed(llama, tmp_path):
    """A copy of the small llama with another config (None removes a key) and, if given, other tensors."""

    def change(tensors=None, **config):
        directory = shutil.copytree(llama, tmp_path / "copy")
        stated = json.loads((directory / "config.json").read_text()) | config
        stated = {key: value for key, value in stated.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(stated))
        if tensors is not None:
            save_file(tensors(load_file(directory / "model.safetensors")), directory / "model.safetensors")
        return directory

    return change


def test_llama(llama):
    spec = read_spec(llama)
    assert (spec.directory, spec.name, spec.model_type, spec.architecture) == (
        llama, llama.name, "llama", "LlamaForCausalLM"
    )  # fmt: skip
    assert (spec.dtype, spec.stored_dtype, spec.recurrent) == ("float32", "float32", False)
    assert (spec.vocab_size, spec.hidden_size, spec.intermediate_size, spec.num_heads) == (96, 64, 96, 4)
    assert [layer.name for layer in spec.layers] == ["model.layers.0", "model.layers.1"]
    weights = 4 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert [(layer.nbytes, layer.disk_bytes) for layer in spec.layers] == [(weights, weights)] * 2
    assert spec.embeddings_and_head_bytes == 4 * (2 * 96 * 64 + 64)
    assert spec.disk_bytes == read_checkpoint(llama).nbytes
    assert spec.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4


def test_bytes_are_counted_in_the_compute_dtype(llama):
    spec, half = read_spec(llama), read_spec(llama, "bfloat16", read_checkpoint(llama))
    assert half.dtype == "bfloat16" and half.stored_dtype == "float32"
    assert half.layers[0].nbytes < spec.layers[0].nbytes and half.layers[0].disk_bytes == spec.layers[0].disk_bytes
    assert (
        half.embeddings_and_head_bytes * 2 == spec.embeddings_and_head_bytes + 2 * 128
    )  # the norm is padded to 256 bytes
    assert half.kv_bytes_per_token * 2 == spec.kv_bytes_per_token
    with pytest.raises(ValueError, match="dtype must be auto"):
        read_spec(llama, "int4")


@pytest.mark.parametrize("model_type", SMALL)
def test_sizes_are_those_of_the_skeleton(tmp_path, model_type):
    save_small_model(model_type, tmp_path, max_shard_size="100KB")
    for dtype in ("float32", "bfloat16"):
        spec, skeleton = read_spec(tmp_path, dtype), build_skeleton(tmp_path, getattr(torch, dtype), "cpu", "eager")
        assert [layer.nbytes for layer in spec.layers] == [layer.layout.nbytes for layer in skeleton.layers]
        assert spec.embeddings_and_head_bytes == skeleton.embeddings_and_head.layout.nbytes
        assert spec.vocab_size == skeleton.config.vocab_size and spec.hidden_size == skeleton.config.hidden_size
        assert spec.kv_bytes_per_token == CACHED.get(model_type, 128) * (4 if dtype == "float32" else 2)
    assert spec.recurrent == (model_type in ("qwen3_next", "mamba2"))


def test_a_head_that_is_tied_but_stored_counts_once(changed):
    directory = changed(tie_word_embeddings=True)
    assert read_spec(directory).embeddings_and_head_bytes == 4 * (96 * 64 + 64)


def test_a_tied_head_that_is_stored_in_place_of_the_embedding_counts(changed):
    def without_embedding(tensors):
        return {name: tensor for name, tensor in tensors.items() if "embed" not in name}

    directory = changed(tie_word_embeddings=True, tensors=without_embedding)
    assert read_spec(directory).embeddings_and_head_bytes == 4 * (96 * 64 + 64)


def test_layers_beyond_the_stated_number_are_left_out(changed):
    spec = read_spec(changed(num_hidden_layers=1))
    assert len(spec.layers) == 1 and spec.embeddings_and_head_bytes == 4 * (2 * 96 * 64 + 64)


def test_absent_layers_are_named(changed):
    with pytest.raises(ModelFilesError, match=r"config\.json says 4 layers, but the files hold no tensor of layer 2"):
        read_spec(changed(num_hidden_layers=4))


def test_what_the_config_leaves_out_is_read_off_the_tensors(changed):
    spec = read_spec(changed(vocab_size=None, hidden_size=None, intermediate_size=None, max_position_embeddings=None))
    assert (spec.vocab_size, spec.hidden_size, spec.intermediate_size) == (96, 64, 96)
    assert spec.max_positions == NO_POSITION_LIMIT


@pytest.mark.parametrize("value", ["32", 0, -1, 1.5, True, [2]])
@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "num_attention_heads"])
def test_numbers_that_are_none_are_refused(changed, key, value):
    with pytest.raises(ModelFilesError, match=f"config.json: {key} is .*, but must be a positive number"):
        read_spec(changed(**{key: value}))


@pytest.mark.parametrize(
    ("config", "recurrent"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["full_attention", "linear_attention"]}, True),
        ({"layers_block_type": ["mamba", "attention"]}, True),
        ({"block_types": ["recurrent", "attention"]}, True),
        ({"model_type": "jamba"}, True),
    ],
)
def test_recurrent_layers(changed, config, recurrent):
    assert read_spec(changed(**config)).recurrent == recurrent


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"vision_config": {"hidden_size": 8}}, r"multimodal \(vision_config\)"),
        ({"quantization_config": {"quant_method": "aqlm"}}, r"packed as 'aqlm', .* awq, bitsandbytes, .* can"),
    ],
)
def test_what_cannot_be_run_is_refused(changed, config, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read_spec(changed(**config))


def test_eight_bit_weights_without_a_config_for_them_are_refused(changed):
    directory = changed(tensors=lambda tensors: {name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()})
    with pytest.raises(UnsupportedModelError, match="stored as F8_E4M3"):
        read_spec(directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "its JSON cannot be read"), ("[]", "not an object"), ("{}", "names no model_type"), ("", "cannot be read")],
)
def test_a_damaged_config(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFilesError, match=message) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_no_directory(tmp_path):
    with pytest.raises(ModelFilesError, match=r"absent: no such file or directory, nor a name"):
        read_spec(tmp_path / "absent")


def test_a_spec_needs_no_torch(llama):
    code = "import sys; from loaders.checkpoint.read_spec import read_spec; read_spec(sys.argv[1]); "
    code += "print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code, llama], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
def test_latent_attention_counts_what_it_expands(family):
    """Of one token of one layer: what transformers' own module allocates, and what it keeps alive meanwhile."""
    directory = checkpoint(family)
    model = reference(directory)
    attention, config = model.model.layers[1].self_attn, model.config
    latents, rotated = torch.randn(1, 1, 5, config.kv_lora_rank), torch.randn(1, 1, 5, config.qk_rope_head_dim)
    with torch.no_grad():
        keys, values = attention.expand_kv(latents, rotated)
    allocated = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in (keys, values)}
    assert len(allocated) == 2 and read_spec(directory, "float32").expanded_bytes * 5 == sum(allocated.values())
    assert read_spec(checkpoint("llama"), "float32").expanded_bytes == 0
