"""LoRA adapters: merged exactly wherever a weight lies, refused by name where they cannot be, found where they lie."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.adapters import merge
from loaders.adapters.adapter import read_adapter
from loaders.adapters.locate import with_adapter
from loaders.adapters.merge import Update
from loaders.errors import ModelFilesError, OffloadError, UnsupportedModelError
from loaders.io.reader import WeightReader
from loaders.io.sources import map_sources
from loaders.io.spans import joined, spans
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import Checkpoint, read_checkpoint, read_header
from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from tests.samples.adapter_samples import CONFIG, write_adapter
from tests.samples.quantized.packed_models import packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

NEW_TOKENS = 16
ATTENTION = ("q_proj", "v_proj")


def buffers(
    directory: Path, dtype: torch.dtype, adapter: Path | None = None, span: int | None = None
) -> list[torch.Tensor]:
    """The bytes of all layers, read whole, or in spans, in an order that is not theirs."""
    stored = read_checkpoint(directory)
    stored = Checkpoint(stored.directory, stored.tensors, adapter=read_adapter(adapter) if adapter else None)
    skeleton = build_skeleton(directory, dtype, "cpu", "eager", stored)
    sources, embeddings_and_head = map_sources(skeleton, stored)
    found = []
    with WeightReader(stored.files) as reader:
        for layer, source in zip((*skeleton.layers, skeleton.embeddings_and_head), (*sources, embeddings_and_head)):
            buffer = torch.zeros(layer.layout.nbytes, dtype=torch.uint8)
            if span is None:
                reader.fill(source, buffer)
            else:
                for piece in reversed(spans(source, layer.layout.nbytes, span)):
                    staged = torch.zeros(256 + piece.nbytes, dtype=torch.uint8)
                    reader.fill(joined([(256, piece)]), staged)
                    buffer[piece.start : piece.stop] = staged[256:]
            found.append(buffer)
    return found


CASES = {
    "llama": ("llama", (*ATTENTION, "up_proj", "down_proj"), {}),
    "bfloat16 on disk": ("llama", ATTENTION, {"dtype": torch.bfloat16}),
    "experts": ("mixtral", ("w1", "w2", "o_proj"), {}),
    "routed": ("qwen3_moe", ("gate_proj", "down_proj"), {}),
    "fused in the model": ("phi3", ("qkv_proj", "gate_up_proj"), {}),
    "transposed": ("gpt2", ("c_attn", "c_fc", "c_proj"), {"transposed": True, "fan_in_fan_out": True}),
    "names of trainers": ("llama", ATTENTION, {"tensor_name": "{}.lora_{}.default.weight"}),
    "rank and alpha": (
        "llama",
        ATTENTION,
        {"r": 8, "lora_alpha": 4, "ranks": {"_proj": 8}, "scalings": {"_proj": 0.5}},
    ),
    "rsLoRA": ("llama", ATTENTION, {"use_rslora": True, "scalings": {"_proj": 4.0}}),
    "patterns": (
        "llama",
        ATTENTION,
        {
            "rank_pattern": {"v_proj": 2, r"^model.layers.\d+.self_attn.q_proj": 6},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 1, "v_proj": 6},
            "ranks": {"v_proj": 2, "q_proj": 6},
            "scalings": {"layers.1.self_attn.v_proj": 0.5, "v_proj": 3.0, "q_proj": 8 / 6},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_the_merged_model_to_the_bit(case, dtype):
    """However it is cut on its way; rounded once where it is computed in bfloat16."""
    architecture, leaves, options = CASES[case]
    model = checkpoint(architecture)
    adapter, merged = write_adapter(model, leaves, **options)
    read = buffers(model, dtype, adapter)
    if dtype == torch.float32:
        assert all(map(torch.equal, read, buffers(merged, dtype)))
    else:  # PEFT rounds the model first, as it loads it, and the sum then
        rounded = shutil.copytree(model, merged.parent / "rounded")
        halves = {name: t.bfloat16().float() for name, t in load_file(model / "model.safetensors").items()}
        save_file(halves, rounded / "model.safetensors", metadata={"format": "pt"})
        other, sums = write_adapter(rounded, leaves, **options)
        assert (
            load_file(other / "adapter_model.safetensors").keys()
            == load_file(adapter / "adapter_model.safetensors").keys()
        )
        assert all(map(torch.equal, read, buffers(sums, dtype)))
    for span in (256, 1024, 4096):
        assert all(map(torch.equal, read, buffers(model, dtype, adapter, span)))
    assert not all(map(torch.equal, read, buffers(model, dtype))), "without the adapter it is another model"


def test_a_wrong_scaling_shows():
    model = checkpoint("llama")
    adapter, merged = write_adapter(model, ATTENTION, scalings={"v_proj": 2.1})
    assert not all(map(torch.equal, buffers(model, torch.float32, adapter), buffers(merged, torch.float32)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(300, 70), (64, 33), (3, 500), (129, 1)])
def test_every_cut_of_an_update_adds_the_same(shape, transposed, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "BLOCK_VALUES", 64)
    (outputs, inputs), generator = shape[::-1] if transposed else shape, torch.Generator().manual_seed(0)
    a, b = torch.randn(5, inputs, generator=generator), torch.randn(outputs, 5, generator=generator)
    save_file({"a": a, "b": b}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    update = Update(stored["a"], stored["b"], 0.7, transposed)
    whole = torch.zeros(shape[0] * shape[1])
    update.add_to(whole, 0)
    delta = b @ a * 0.7
    torch.testing.assert_close(whole.view(shape), delta.T if transposed else delta)
    for step in (1, 7, 64, 71, 4999):
        pieces = torch.zeros_like(whole)
        for begin in range(0, len(whole), step * (1 if len(whole) < 2000 or step > 1 else 97)):
            update.add_to(pieces[begin : begin + step], begin)
        assert torch.equal(pieces[pieces != 0], whole[pieces != 0]) and pieces.any()


@pytest.mark.parametrize("draft", ["none", "tree"])
def test_a_streamed_runtime_writes_the_text_of_the_merged_model(draft):
    model = checkpoint("llama")
    adapter, merged = write_adapter(model, (*ATTENTION, "down_proj"))
    expected = greedy(merged, PROMPT, NEW_TOKENS)
    assert expected != greedy(model, PROMPT, NEW_TOKENS)
    options = {"tree": "sequoia", "tree_size": 6, "tree_depth": 2} if draft == "tree" else {}
    drafted = perturbed(merged, 0.02) if draft == "tree" else "none"
    for spare in (0, 1 << 30):
        with streaming_runtime(model, drafted, spare, context_length=96, adapter=adapter, **options) as runtime:
            assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected
            assert runtime.plan.model.endswith("with adapter")


def test_modules_that_are_saved_whole_take_the_models_place():
    model = checkpoint("llama")
    head = torch.randn(96, 32, generator=torch.Generator().manual_seed(1))
    names = {"lm_head.modules_to_save.weight": "lm_head.weight", "lm_head.weight": "lm_head.weight"}
    for name, own in names.items():
        adapter, merged = write_adapter(model, ATTENTION, replaced={own: head}, modules_to_save=["lm_head"])
        tensors = load_file(adapter / "adapter_model.safetensors")
        tensors[f"base_model.model.{name}"] = tensors.pop(f"base_model.model.{own}")
        save_file(tensors, adapter / "adapter_model.safetensors")
        assert all(map(torch.equal, buffers(model, torch.float32, adapter), buffers(merged, torch.float32)))


def test_a_head_of_its_own_is_no_longer_tied():
    model = checkpoint("qwen2")
    adapter, merged = write_adapter(model, ATTENTION, replaced={"lm_head.weight": torch.randn(96, 32)})
    expected = greedy(merged, PROMPT, NEW_TOKENS)
    with pytest.warns(UserWarning, match="different values"):
        runtime = OffloadRuntime.from_pretrained(model, "none", device="cpu", adapter=adapter)
    with runtime:
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected


def test_biases_that_were_trained():
    model = checkpoint("qwen2")
    bias = {f"model.layers.{layer}.self_attn.q_proj.bias": torch.full((32,), 0.1 + layer) for layer in range(3)}
    adapter, merged = write_adapter(model, ATTENTION, replaced=bias, bias="lora_only")
    assert all(map(torch.equal, buffers(model, torch.float32, adapter), buffers(merged, torch.float32)))


def test_embeddings():
    model = checkpoint("llama")
    adapter, merged = write_adapter(model, ["embed_tokens"], transposed=True, tensor_name="{}.lora_embedding_{}")
    assert all(map(torch.equal, buffers(model, torch.float32, adapter), buffers(merged, torch.float32)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3; LORA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"task_type": "SEQ_CLS"}, "task_type is SEQ_CLS"),
        ({"use_dora": True}, "use_dora is True, which cannot be applied"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
        ({"use_qalora": True}, "use_qalora is"),
        ({"invented_later": 1}, "invented_later is 1"),
        *(({"init_lora_weights": way}, f"init_lora_weights is {way}") for way in ("pissa", "olora", "loftq", "corda")),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
        *(({"r": r}, "the rank of .* is") for r in (0, -1, 4.0, "4", True, [4])),
        *(({"lora_alpha": alpha}, "lora_alpha of .* is") for alpha in ("8", 1e400, [8], True)),
        ({"use_rslora": "false"}, "use_rslora is false; true"),
        ({"rank_pattern": [1]}, "rank_pattern is"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern has the expression"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern has"),
    ],
)
def test_settings_that_cannot_be_applied_are_refused_by_name(config, message, tmp_path):
    adapter, _ = write_adapter(checkpoint("llama"), ["q_proj"])
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    with pytest.raises(UnsupportedModelError, match=message):
        read_adapter(tmp_path)


def test_null_is_what_is_left_out(tmp_path):
    adapter, _ = write_adapter(checkpoint("llama"), ["q_proj"])
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    nulls = dict.fromkeys(("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | nulls))
    assert _scalings(tmp_path) == _scalings(adapter)


def _scalings(adapter):
    return [(update.module, update.scaling) for update in read_adapter(adapter).updates]


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_A.weight": (4, 32)}, "holds lora_A without the other half"),
        ({f"{Q}.lora_A.weight": (4, 32), f"{Q}.lora_B.weight": (32, 3)}, r"B \[32, 3\], but rank 4"),
        ({f"{Q}.lora_A.weight": (128,), f"{Q}.lora_B.weight": (32, 4)}, r"A \[128\]"),
        ({f"{Q}.lora_magnitude_vector": (32,)}, "lora_magnitude_vector is no part of LoRA that can be applied"),
        ({f"{Q}.lora_A.weight": (4, 31), f"{Q}.lora_B.weight": (32, 4)}, r"update of .*q_proj has shape \[32, 31\]"),
        ({f"{Q}x.lora_A.weight": (4, 32), f"{Q}x.lora_B.weight": (32, 4)}, "1 tensors that the model has not"),
        ({"base_model.model.lm_head.weight": (97, 32)}, r"lm_head.weight must have shape \[96, 32\]"),
        ({"base_model.model.score.weight": (2, 32)}, "1 tensors that the model has not, the first is score.weight"),
        ({}, "it holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(OffloadError, match=message):
        buffers(checkpoint("llama"), torch.float32, tmp_path)


def test_tied_weights_and_packed_ones_are_refused():
    tied = checkpoint("qwen2")
    for leaf, options in (
        ("embed_tokens", {"transposed": True, "tensor_name": "{}.lora_embedding_{}"}),
        ("none", {"replaced": {"model.embed_tokens.weight": torch.randn(96, 32)}}),
    ):
        adapter, _ = write_adapter(tied, [leaf], **options)
        with pytest.raises(UnsupportedModelError, match="Merge it with PEFT, which then stores both"):
            buffers(tied, torch.float32, adapter)
    adapter, _ = write_adapter(checkpoint("llama"), ATTENTION)
    with pytest.raises(UnsupportedModelError, match=r"q_proj.weight, which it changes, is packed \(packed\)"):
        buffers(packed_model("awq"), torch.float32, adapter)
    with pytest.raises(UsageError, match="not with --quantize"):
        OffloadRuntime.from_pretrained(checkpoint("llama"), "none", adapter=adapter, quantize="int4")


def test_a_pickled_adapter_is_never_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelFilesError, match="can run code when read"):
        read_adapter(tmp_path)


def test_which_adapter_is_meant(tmp_path):
    model = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    adapter, _ = write_adapter(model, ATTENTION)
    assert with_adapter(model, None) == (model, None)
    assert with_adapter(model, str(adapter)) == with_adapter(model, adapter / "adapter_config.json") == (model, adapter)
    with pytest.raises(ModelFilesError, match=rf"made for org/base, .*\n  --model org/base --adapter {adapter}"):
        with_adapter(adapter, None)
    with pytest.raises(ModelFilesError, match="hf download org/adapter"):
        with_adapter(model, "org/adapter")
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": str(model)}))
    assert with_adapter(adapter, None) == (model, adapter)
    for file in adapter.iterdir():
        shutil.copy(file, model)
    assert with_adapter(model, None) == (model, model) and with_adapter(model, "none") == (model, None)
    (model / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelFilesError, match=r"made for org/base\. It may be merged already(.|\n)*--adapter none"):
        with_adapter(model, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_peft_merges_to_the_same_bits(dtype, stored):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = checkpoint("llama")
    adapter, _ = write_adapter(model, (*ATTENTION, "up_proj"), dtype=stored, target_modules=[*ATTENTION, "up_proj"])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    merged = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
    directory = adapter.parent / "by-peft"
    merged.save_pretrained(directory)
    assert all(map(torch.equal, buffers(model, dtype, adapter), buffers(directory, dtype)))
