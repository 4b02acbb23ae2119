"""Models whose weights are packed: streamed packed, decoded before use or for good; text of the decoded weights."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from loaders.checkpoint.read_spec import read_spec
from loaders.dequantize.hooks import scratch_bytes
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import read_checkpoint
from loaders.sizes import GIB
from offload_runtime import OffloadRuntime
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare
from scheduler.plan.dequantized_layers import DecodedLayers
from scheduler.plan.memory import weight_bytes
from scheduler.plan.pass_cost import PassCost
from scheduler.plan.plan import Tier
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.layer_memory import LayerMemory
from tests.plan_samples import gpu
from tests.samples.quantized.packed_models import AWQ, CASES, WHOLE, gptq_config, packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime, writes

NEW_TOKENS = 24
TREE = {"context_length": 96, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_streamed_text_is_that_of_the_decoded_weights(case):
    """Every other case with a tree from a draft that is sometimes right, the others plainly."""
    directory, architecture = packed_model(case), CASES[case][0]
    draft = perturbed(directory / "decoded", 0.02) if list(CASES).index(case) % 2 else "none"
    expected = greedy(directory / "decoded", PROMPT, NEW_TOKENS)
    assert expected != greedy(checkpoint(architecture), PROMPT, NEW_TOKENS), "packing must make a difference"
    with streaming_runtime(directory, draft, **TREE) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == expected
    assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    packed = sum(layer.disk_bytes for layer in read_spec(directory).layers)
    assert abs(runtime.plan.streamed_bytes - packed) < packed / 20, "packed bytes are streamed as they are"
    assert draft == "none" or reply.stats.tokens_per_pass > 1.5


def resident_runtime(
    directory: Path, decoded: int | None, draft: Path | str = "none", tree: str = "auto"
) -> OffloadRuntime:
    """With memory for so many decoded layers of the target, and no more; None: for all that is packed."""
    resolved = draft if draft == "none" else Path(draft)
    options = Options(directory, None if draft == "none" else resolved, device="cpu", tree=tree, context_length=96)
    preparation = prepare(options)
    spec, cap = preparation.target.spec, preparation.plan.device_bytes
    if decoded is not None:
        cap -= sum(layer.decoded.nbytes - layer.nbytes for layer in spec.layers[decoded:])
        cap += spec.decode_bytes - spec.embeddings_and_head_decode_bytes
    return OffloadRuntime.from_pretrained(
        directory, draft, device="cpu", tree=tree, context_length=96, device_memory=None if decoded is None else cap
    )


@every_case
def test_resident_text_is_that_of_the_decoded_weights(case):
    """Layers decoded once, while they are loaded, and in every third case some of them before every use."""
    directory = packed_model(case)
    layers = len(read_spec(directory).layers)
    some = None if list(CASES).index(case) % 3 else layers - 2
    with resident_runtime(directory, some) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DEVICE}
        assert runtime.plan.decoded.target == (layers if some is None else some)
        model = runtime._models.target.model
        held = sum(len(buffer) for buffer in model._weights.resident.values())
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.stats.peak_device_bytes <= runtime.plan.device_bytes
    assert reply.token_ids == greedy(directory / "decoded", PROMPT, NEW_TOKENS)
    spec = read_spec(directory).with_decoded(runtime.plan.decoded.target)
    assert held == pytest.approx(weight_bytes(spec), rel=0.1), "packed bytes are not kept beside the decoded ones"


@pytest.mark.parametrize("decoded", [0, 1])
@pytest.mark.parametrize("case", ["awq", "MXFP4"])
def test_layers_are_decoded_as_far_as_there_is_memory(case, decoded):
    directory = packed_model(case)
    with resident_runtime(directory, decoded) as runtime:
        assert runtime.plan.decoded == DecodedLayers(decoded, 0)
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(directory / "decoded", PROMPT, NEW_TOKENS)


def test_packed_bytes_are_free_once_a_layer_is_decoded(monkeypatch):
    """Then what PyTorch keeps of them goes back to a GPU's driver."""
    packed, held = [], []
    replace_buffer = LayerMemory.replace

    def replacing(self, layer, buffer):
        packed.append(StorageWeakRef(self.resident[layer].untyped_storage()))
        replace_buffer(self, layer, buffer)

    monkeypatch.setattr(LayerMemory, "replace", replacing)
    monkeypatch.setattr(DeviceMemory, "release_unused", lambda _: held.append(not packed[-1].expired()))
    directory = packed_model("awq experts")
    with resident_runtime(directory, None):
        assert held == [False] * len(read_spec(directory).layers)


@pytest.mark.parametrize("case", WHOLE)
def test_embeddings_and_heads_may_be_packed(case):
    directory = packed_model(case)
    with streaming_runtime(directory, context_length=96) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(directory / "decoded", PROMPT, NEW_TOKENS)
    spec, skeleton = read_spec(directory), build_skeleton(directory, torch.float32, "cpu", "eager")
    assert (
        spec.embeddings_and_head_bytes
        == skeleton.embeddings_and_head.layout.nbytes
        < read_spec(directory / "decoded").embeddings_and_head_bytes
    )


def test_a_plan_needs_no_torch():
    code = (
        "import sys; from pathlib import Path; from offload_runtime.planning.planning import prepare;"
        "from offload_runtime.options.run_options import Options;"
        "from scheduler.plan.table import format_plan;"
        "print(format_plan(prepare(Options(Path(sys.argv[1]), device='cpu')).plan));"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, packed_model("nf4, scales packed")]
    root = Path(__file__).resolve().parents[3]
    lines = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "False"
    assert "bitsandbytes nf4, computed in " in lines[0]
    assert any("a packed layer, while it is decoded" in line for line in lines)


def test_a_packed_draft():
    target = packed_model("awq") / "decoded"
    with streaming_runtime(target, packed_model("awq"), **TREE) as runtime:
        assert runtime.plan.decoded == DecodedLayers(0, 0), "memory goes to layers that then need not stream"
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target, PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass > 4


def test_a_draft_is_decoded_before_the_target():
    directory = packed_model("awq")
    with resident_runtime(directory, 0, directory, "sequoia") as runtime:
        assert runtime.plan.decoded == DecodedLayers(0, len(read_spec(directory).layers))
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(directory / "decoded", PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass > 1.5


@pytest.mark.parametrize("place", ["streamed", "resident"])
@pytest.mark.parametrize(
    "case", ["awq", "gptq", "int4 groups", "FP8 tensor", "nf4", "MXFP4", "FP8 experts", "NVFP4", "MXFP8"]
)
def test_a_flipped_byte_changes_the_text(case, place, tmp_path):
    """The control, for each kind of decoding: the top bits of the first bytes of a matrix, 4 or 8 values."""
    directory = shutil.copytree(packed_model(case), tmp_path / "damaged")
    largest = max(read_checkpoint(directory).tensors.values(), key=lambda t: t.nbytes * (t.dtype in PACKED_DTYPES))
    with largest.file.open("r+b") as file:
        file.seek(largest.offset)
        content = file.read(64)
        file.seek(largest.offset)
        file.write(bytes(byte ^ 0x88 for byte in content))
    started = (
        streaming_runtime(directory, context_length=96) if place == "streamed" else resident_runtime(directory, None)
    )
    with started as runtime:
        assert not writes(runtime, PROMPT, greedy(packed_model(case) / "decoded", PROMPT, NEW_TOKENS))


PACKED_DTYPES = {"I32", "U8", "I8", "F8_E4M3"}


@every_case
def test_sizes_are_those_of_the_skeleton(case):
    directory = packed_model(case)
    for dtype in ("float32", "bfloat16"):
        spec, skeleton = read_spec(directory, dtype), build_skeleton(directory, getattr(torch, dtype), "cpu", "eager")
        plain = read_spec(directory / "decoded", dtype)
        # spec counts g_idx that turn out to say nothing, and pads experts one by one
        for layer, real, whole in zip(spec.layers, skeleton.layers, plain.layers):
            assert abs(layer.nbytes - real.layout.nbytes) < layer.nbytes / 5
            assert abs(layer.weight_bytes - whole.nbytes) < whole.nbytes / 50
        assert spec.decode_bytes == scratch_bytes(skeleton.packed) > 0
        assert spec.embeddings_and_head_bytes == skeleton.embeddings_and_head.layout.nbytes
        for size in ("kv_bytes_per_token", "hidden_size", "intermediate_size", "vocab_size", "num_heads"):
            assert getattr(spec, size) == getattr(plain, size)
        assert spec.stored_dtype in spec.weight_form and dtype in spec.weight_form


def test_what_reads_a_weight_outside_of_its_module_fails(tmp_path):
    """Scratch memory holds the next module's weights by then."""
    directory = packed_model("awq")
    with resident_runtime(directory, 0) as runtime:
        runtime.generate(PROMPT, max_new_tokens=2, temperature=0)
        assert runtime._models.target.model._model.model.layers[0].mlp.up_proj.weight.is_meta


@pytest.mark.parametrize("case", ["awq experts", "MXFP4", "NVFP4 experts"])
def test_only_the_experts_that_are_hit_are_decoded(case):
    directory = packed_model(case)
    with resident_runtime(directory, 0) as runtime:
        model = runtime._models.target.model._model
        layers, seen = model.model.layers, []

        def spoil(module, args, output):
            module.down_proj.data.fill_(torch.nan)

        def look(module, args):
            seen.append((args[1], module.down_proj.data.clone()))

        layers[0].mlp.experts.register_forward_hook(spoil, prepend=True)
        layers[1].mlp.experts.register_forward_pre_hook(look)
        runtime.generate(PROMPT[:1], max_new_tokens=4, temperature=0)
    for index, decoded in seen:
        whole = {expert for expert in range(4) if not decoded[expert].isnan().any()}
        assert whole == set(index.flatten().tolist()) and len(whole) == 2


def test_a_pass_costs_what_is_decoded():
    """Packed bytes cross the link; the arithmetic, and what memory moves, is that of the decoded weights."""
    packed, plain = (read_spec(path, "bfloat16") for path in (packed_model("awq"), packed_model("awq") / "decoded"))
    slow = replace(gpu(8 * GIB), flops=1e6)
    first, second = (PassCost(spec, (), 0, slow)._layer_seconds(spec.layers[0], 9, 0, 1) for spec in (packed, plain))
    assert first == pytest.approx(second, rel=0.02)
    moved = PassCost(packed, (), 0, replace(gpu(8 * GIB), memory_bandwidth=1e3))._layer_seconds(
        packed.layers[0], 1, 0, 1
    )
    layer, row = packed.layers[0], packed.kv_bytes_per_token / len(packed.layers)  # the row's own key and value
    assert moved == pytest.approx((layer.nbytes + 2 * layer.decoded_bytes + row) / 1e3)
    assert layer.nbytes < layer.decoded_bytes


NVFP4_FILE = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int"}


@pytest.mark.parametrize(
    ("case", "config", "file"),
    [
        ("gptq", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}, "quantize_config.json"),
        ("awq", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}, "quant_config.json"),
        ("awq", {**AWQ, "zero_point": False}, "config.json"),
        ("awq", {**AUTO_ROUND, "packing_format": "auto_round:auto_awq"}, "config.json"),
        ("gptq", {**AUTO_ROUND, "packing_format": "auto_round:auto_gptq"}, "quantization_config.json"),
        (
            "gptq",
            {**AUTO_ROUND, "quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"},
            "config.json",
        ),
        ("gptq", gptq_config(dynamic={"-:.*lm_head": {}, "+:.*up_proj": {"bits": 4, "desc_act": True}}), "config.json"),
        ("ModelOpt NVFP4", {"producer": {}, "quantization": NVFP4_FILE}, "hf_quant_config.json"),
        ("ModelOpt NVFP4", {"quant_method": "modelopt", "quantization": NVFP4_FILE}, "config.json"),
        ("gptq", {**AUTO_ROUND, "backend": "gptq", "extra_config": {"lm_head": {"bits": 16}}}, "config.json"),
    ],
)
def test_the_same_weights_however_it_is_said_how_they_are_packed(case, config, file, tmp_path):
    directory = shutil.copytree(packed_model(case), tmp_path / "model", ignore=shutil.ignore_patterns("decoded"))
    values = json.loads((directory / "config.json").read_text())
    del values["quantization_config"]
    if file == "config.json":
        values["quantization_config"] = config
    else:
        (directory / file).write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps(values))
    with streaming_runtime(directory, context_length=96) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(packed_model(case) / "decoded", PROMPT, NEW_TOKENS)
