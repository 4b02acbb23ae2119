"""What a GGUF file says of a model, in the words of transformers: config, names, and which file is meant."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.read_spec import read_config
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.gguf.config import _ends, gguf_config
from loaders.gguf.families.known import FAMILIES, MIXTURES
from loaders.gguf.header import STRING as STRING_TYPE
from loaders.gguf.header import GgufArray, read_gguf
from loaders.gguf.model import gguf_or_directory
from loaders.gguf.tensors import model_tensors
from loaders.gguf.vocabulary import TOKENS
from loaders.hub.names import directory_name
from tests.samples.gguf_families.rewriting import Change, rewritten
from tests.samples.gguf_samples import CASES, gguf, gguf_model, write_gguf
from tests.samples.tiny_models import make_checkpoint

every_case = pytest.mark.parametrize("case", CASES)
NOT_COMPARED = {"quantization_config", "dtype", "architectures", "pad_token_id", "rope_parameters", "eos_token_id"}


@every_case
def test_the_config_is_the_original_s(case):
    values = read_config(gguf_model(case))
    found, original = AutoConfig.for_model(**values), AutoConfig.from_pretrained(gguf_model(case).parent / "decoded")
    assert type(found) is type(original) and original.architectures == values["architectures"]
    for name in values.keys() - NOT_COMPARED:
        value = getattr(original, name)
        assert getattr(found, name) == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    if case != "llama with other rotations":
        assert found.rope_parameters == original.rope_parameters


@pytest.mark.parametrize("case", ["llama 3, mixed K", "llama with other rotations"])
def test_frequencies_are_the_original_s(case):
    """Llama 3's own where these are they, bit for bit; any others to what float32 holds of their factors."""
    found = AutoConfig.for_model(**read_config(gguf_model(case)))
    original = AutoConfig.from_pretrained(gguf_model(case).parent / "decoded")
    one, other = (ROPE_INIT_FUNCTIONS[c.rope_parameters["rope_type"]](c, "cpu")[0] for c in (found, original))
    assert torch.allclose(one, other, rtol=1e-6, atol=0)
    assert torch.equal(one, other) or case != "llama 3, mixed K"


def test_factors_without_effect_are_none(tmp_path):
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    file = write_gguf(make_checkpoint("llama", 2, False, changes), tmp_path / "m.gguf", lambda name: "F32")
    assert gguf_config(read_gguf(file))["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize("known", [FAMILIES, MIXTURES])
@pytest.mark.parametrize("family", {**FAMILIES, **MIXTURES})
def test_names_are_the_package_s(known, family):
    if family not in known:
        return
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(number, 2)
    for ours, theirs in known[family].outside.items():  # the head is None where it is always tied
        found = names.get_name(theirs) or names.get_name(theirs.replace("model.", "backbone."))
        assert found in (ours, None if ours == "output" else ours)
    other_words = {"mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias", "linear_attn.dt_bias"}
    other_words |= {
        "mamba.dt_bias",
        "mixer.dt_bias",
        "mixer.experts.up_proj",
        "mixer.experts.down_proj",
        "shared_mlp.output_linear",
        "self_attn.forget_gate.dt_bias",
    }
    other_words |= {"mamba.D", "mamba.conv1d.bias", "mixer.conv1d.bias", "mixer.gate.e_score_correction_bias"}
    other_words |= {"block_sparse_moe.router"}  # which has a module more in checkpoints
    other_words |= {"router.scale", "router.per_expert_scale", "feed_forward.expert_bias"}
    for ours, theirs in known[family].layer.items():
        leaf = re.sub(r"\.(weight|bias)$", "", ours)
        if theirs not in other_words and ours not in ("attn_kv_b", "ssm_in") and not ours.startswith("nextn."):
            there = theirs.replace("forget_gate.", "")
            found = [names.get_name(f"{model}.layers.1.{there}") for model in ("model", "backbone")]
            assert f"blk.1.{leaf}" in found, theirs


def changed(directory: Path, change: Change) -> Path:
    """A Llama's file with another writer's ideas."""
    return rewritten(gguf_model("Q8_0"), directory, change)


U32, F32, STRING = ([getattr(gguf.GGUFValueType, name)] for name in ("UINT32", "FLOAT32", "STRING"))
NORM = (torch.ones(8).numpy(), gguf.GGMLQuantizationType.F32)
REFUSED = {
    "architecture": (lambda v, t: "mamba", UnsupportedModelError, "architecture 'mamba' cannot .* llama, qwen2"),
    "experts": (
        lambda v, t: v.update({"gemma2.expert_count": (8, U32)}) or "gemma2",
        UnsupportedModelError,
        "'gemma2' with experts cannot .* llama, qwen2moe, qwen3moe",
    ),
    "unknown tensor": (
        lambda v, t: t.update({"blk.0.attn_gate.weight": NORM}),
        UnsupportedModelError,
        "it holds blk.0.attn_gate.weight",
    ),
    "no embedding": (lambda v, t: t.pop("token_embd.weight") and None, ModelFilesError, "no token_embd.weight"),
    "key missing": (lambda v, t: v.pop("llama.block_count") and None, ModelFilesError, "lack llama.block_count"),
    "key of another type": (
        lambda v, t: v.update({"llama.block_count": ("three", STRING)}),
        ModelFilesError,
        "llama.block_count is three, but must be int",
    ),
    "no heads": (lambda v, t: v.update({"llama.attention.head_count": (0, U32)}), ModelFilesError, "head_count is 0"),
    "endless": (
        lambda v, t: v.update({"llama.rope.freq_base": (float("inf"), F32)}),
        ModelFilesError,
        "llama.rope.freq_base is inf",
    ),
    "scaling": (
        lambda v, t: v.update({"llama.rope.scaling.type": ("magic", STRING)}),
        UnsupportedModelError,
        "scaling.type is 'magic'; linear and yarn",
    ),
    "more scaling": (
        lambda v, t: v.update({"llama.rope.scaling.yarn_log_multiplier": (0.1, F32)}),
        UnsupportedModelError,
        "rope.scaling.yarn_log_multiplier is not known of llama",
    ),
    "rotated in part": (
        lambda v, t: v.update({"llama.rope.dimension_count": (4, U32)}),
        UnsupportedModelError,
        "4 of the 8 values of a head",
    ),
    "many factors": (lambda v, t: t.update({"rope_freqs.weight": NORM}), ModelFilesError, "rope_freqs.weight has 8"),
    "factor 0": (
        lambda v, t: t.update({"rope_freqs.weight": (0 * NORM[0][:4], NORM[1])}),
        ModelFilesError,
        "not positive numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_named(case, tmp_path):
    change, error, fault = REFUSED[case]
    file = changed(tmp_path, change)
    with pytest.raises(error, match=fault) as caught:
        read_config(file)
    assert str(file) in str(caught.value)


def test_an_unchanged_copy_is_read_the_same(tmp_path):
    """The control of the test above."""
    assert read_config(changed(tmp_path, lambda v, t: None)) == read_config(gguf_model("Q8_0"))


def test_a_file_of_any_name_is_a_gguf_file(tmp_path):
    """As Ollama keeps them."""
    blob = tmp_path / f"sha256-{'0123456789abcdef' * 4}"
    blob.symlink_to(gguf_model("Q8_0"))
    assert model_source(blob).config() == read_config(gguf_model("Q8_0"))
    assert directory_name(blob) == "sha256-0123456789ab"
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(ModelFilesError, match="notes: this is no GGUF file"):
        model_source(tmp_path / "notes").config()


def test_the_one_file_of_a_directory_is_meant(tmp_path):
    assert gguf_or_directory(tmp_path) == tmp_path
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj-a.gguf", "notes.txt"):
        (tmp_path / name).touch()
    assert gguf_or_directory(tmp_path) == tmp_path / "a-00001-of-00002.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(
        ModelFilesError, match=r"holds 2 models. Name one(.|\n)*--model .*a-00001-of-00002(.|\n)*b.gguf"
    ):
        gguf_or_directory(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert gguf_or_directory(tmp_path) == tmp_path


def test_a_plan_takes_no_torch():
    code = (
        "import sys; from offload_runtime.chat import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'gguf'} & sys.modules.keys(); sys.exit(status)"
    )
    model = str(gguf_model("Q4_0"))
    command = [sys.executable, "-c", code, "--model", model, "--draft", model, "--device", "cpu", "--plan", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weight_form"].startswith("GGUF Q4_0, computed in")


def test_tensors_carry_what_decoding_undoes():
    """Queries and keys in pairs, norms with 1 added; the rest as it is."""
    llama, gemma = (model_tensors(read_gguf(gguf_model(case))) for case in ("Q8_0", "gemma2"))
    assert llama["model.layers.2.self_attn.q_proj.weight"].paired_heads == 4
    assert llama["model.layers.2.self_attn.k_proj.weight"].paired_heads == 2
    assert {name for name, tensor in llama.items() if tensor.paired_heads} == {
        f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(3) for part in "qk"
    }
    assert {name for name, tensor in gemma.items() if tensor.less} == {name for name in gemma if "norm.weight" in name}
    assert not any(tensor.less for tensor in llama.values()) and not any(t.paired_heads for t in gemma.values())


def test_layers_that_slide_may_be_listed(tmp_path):
    """In place of the number that most files state, or leave to the family."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    for pattern, layer_types in (([False, True, True], kinds), (3, ["sliding_attention"] * 2 + kinds[:1])):
        source = make_checkpoint("gemma3_text", 2, False, {"layer_types": layer_types})
        file = write_gguf(source, tmp_path / "m.gguf", lambda name: "F32", sliding_window_pattern=pattern)
        assert read_config(file)["layer_types"] == layer_types


def test_text_turn_and_message_have_an_end(tmp_path):
    ends = {f"tokenizer.ggml.{name}_token_id": (token, U32) for name, token in (("eos", 5), ("eot", 9), ("eom", 7))}
    assert gguf_config(read_gguf(changed(tmp_path, lambda v, t: v.update(ends))))["eos_token_id"] == [5, 7, 9]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("<|return|>", "<|call|>"), [5, 7]),
        (("<|flush|>", "<|calls|>"), [5, 7]),
        (("<|return|>", "<|flush|>"), [5, 7, 9]),
    ],
)
def test_the_end_of_a_message_of_several_ends_no_reply(tokens, expected):
    """gpt-oss' converted files may name <|end|>, which stands behind the thoughts too, as the end of a turn."""
    listed = ["a", "b", *tokens, "c", "</s>", "d", "<|eom|>", "e", "<|end|>"]
    ends = {"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 7}
    array = GgufArray(Path(), STRING_TYPE, len(listed), 0, 0)
    gguf = SimpleNamespace(metadata={**ends, TOKENS: array}, items=lambda array: listed)
    assert _ends(gguf) == expected
