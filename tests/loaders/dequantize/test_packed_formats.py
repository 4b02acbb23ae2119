"""What configs and files say about packed weights, and that each weight decodes to what its format means."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from loaders.checkpoint.read_spec import read_spec
from loaders.dequantize.plain import decode
from loaders.dequantize.side_by_side import BLOCK_VALUES
from loaders.errors import ModelFilesError, OffloadError, UnsupportedModelError
from loaders.formats import METHODS, read_format
from loaders.formats.schemes import Scaled
from loaders.formats.weights import told_apart
from loaders.io.sources import map_sources
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import STORED_ITEMSIZE, Checkpoint, read_checkpoint, read_header
from tests.samples.quantized.packed_models import (
    MX,
    NVFP4,
    compressed_config,
    gptq_config,
    modelopt_config,
    packed_model,
)
from tests.samples.quantized.packed_samples import gptq, rewrite
from tests.samples.quantized.packed_weights import NAME, WEIGHTS, packed_weight
from tests.samples.tiny_models import checkpoint

GOLDEN = Path(__file__).resolve().parents[2] / "samples" / "golden_packed.safetensors"
with safe_open(GOLDEN, "pt") as golden:
    GOLDEN_CONFIGS = json.loads(golden.metadata()["configs"])
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq"}
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decoded_weights_are_those_of_the_writer(case, dtype):
    scheme, operands, shape, decoded = packed_weight(case)
    expected = decoded.to(dtype)
    outs = [torch.empty(shape, dtype=dtype)]
    if (
        scheme.input_major
    ):  # where experts are stacked in memory of one order, and where single weights are of the other
        outs.append(torch.empty((*shape[:-2], shape[-1], shape[-2]), dtype=dtype).mT)
    for out in outs:
        decode(scheme, operands, out.fill_(torch.nan))
        assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "case", ["awq rows", "gptq rows", "gptq order", "words 4 zeros", "int8 groups", "fp8 blocks", "nf4 nested"]
)
def test_blocks_of_a_few_rows_make_no_difference(case, monkeypatch):
    """A matrix larger than a block, whose only group is."""
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 1)
    test_decoded_weights_are_those_of_the_writer(case, torch.float32)


@pytest.mark.parametrize("case", GOLDEN_CONFIGS)
def test_what_the_libraries_wrote_decodes_as_they_decode_it(case, tmp_path):
    """Bit for bit; the file was made by write_golden_packed.py."""
    tensors = load_file(GOLDEN)
    parts = {name.split("/")[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{case}/")}
    expected = parts.pop("decoded")
    file = tmp_path / "model.safetensors"
    save_file({f"{NAME}.{leaf}": tensor for leaf, tensor in parts.items()}, file)
    packing = read_format({"model_type": "llama", "quantization_config": GOLDEN_CONFIGS[case]}, file)
    (weight,) = packing.weights(read_header(file))
    operands = load_file(file)
    out = torch.empty(weight.shape, dtype=expected.dtype)
    decode(weight.scheme, {role: operands[t.name] for role, t in weight.operands.items()}, out)
    if case == "ModelOpt NVFP4":  # for which minus zero is zero
        assert not expected[out == 0].signbit().any()
        out += 0.0
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))
    assert len(told_apart(packing, read_checkpoint(tmp_path)).plain) == 0


def test_mxfp4_decodes_as_transformers_decodes_it():
    scheme, operands, shape, _ = packed_weight("MXFP4")
    expected = convert_moe_packed_tensors(operands["weight"], operands["weight_scale"])
    assert scheme.input_major and expected.shape == shape  # it turns the experts round, too
    out = torch.empty(shape, dtype=torch.bfloat16)
    decode(scheme, operands, out)
    assert torch.equal(out.view(torch.int16), expected.contiguous().view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_blocks_decode_as_transformers_decodes_them(dtype):
    """Which knows whole blocks only."""
    stored = torch.randn(48, 64).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2)
    out = torch.empty(48, 64, dtype=dtype)
    decode(Scaled(16, 32, in_float32=True), {"weight": stored, "weight_scale": scale}, out)
    assert torch.equal(out, Fp8Dequantize(None)._dequantize_one(stored, scale, dtype))


def test_float8_that_is_no_number_stays_none():
    scheme, operands, shape, _ = packed_weight("fp8 blocks")
    weight = operands["weight"].clone()
    weight.view(torch.uint8)[3, 5] = 0x7F
    out = torch.empty(shape)
    decode(scheme, {**operands, "weight": weight}, out)
    assert out[3, 5].isnan() and out.isnan().sum() == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "aqlm"}, "packed as 'aqlm', which cannot be decoded. awq, bitsandbytes, .* can"),
        ({"quant_method": ["awq"]}, "packed as"),
        ({"bits": 4}, "packed as None"),
        ({"quant_method": "awq", "bits": 3}, "bits is 3; 4 can be run"),
        ({"quant_method": "awq", "bits": True}, "bits is True"),
        ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv'; gemm, GEMM can be run"),
        ({"quant_method": "awq", "checkpoint_format": "gemv"}, "checkpoint_format is 'gemv'; gemm can be run"),
        ({"quant_method": "awq", "zero_point": "no"}, "zero_point is 'no'"),
        ({"quant_method": "awq", "q_group_size": 100}, "q_group_size is 100; multiples of 8"),
        ({"quant_method": "awq", "group_size": 0}, "group_size is 0"),
        ({"quant_method": "awq", "group_size": "128"}, "group_size is '128'"),
        ({"quant_method": "awq", "group_size": 100}, "group_size is 100; multiples of 8"),
        (gptq_config(bits=3), "bits is 3; 4, 8 can be run"),
        (gptq_config(bits=None), "bits is None"),
        (gptq_config(checkpoint_format="marlin"), "checkpoint_format is 'marlin'; gptq, gptq_v2"),
        (gptq_config(is_marlin_format=True), "is_marlin_format"),
        (gptq_config(dynamic={"+:.*": {"bits": 8}}), "dynamic gives modules a bits of their own"),
        (gptq_config(dynamic={"-:head": {}, ".*": {"group_size": 64}}), "dynamic gives modules a group_size"),
        ({**AUTO_ROUND, "packing_format": "auto_round"}, "packing_format is 'auto_round'; auto_round:auto_gptq"),
        ({**AUTO_ROUND, "data_type": "mx_fp"}, "data_type is 'mx_fp'"),
        ({**AUTO_ROUND, "bits": 3}, "bits is 3"),
        ({**AUTO_ROUND, "extra_config": {"lm_head": {"bits": 8}}}, "extra_config gives lm_head a bits of its own"),
        ({"quant_method": "modelopt", "quantization": {}}, "quant_algo is None; FP8, "),
        (modelopt_config("W4A16_AWQ"), "quant_algo is 'W4A16_AWQ'; FP8, .*NVFP4"),
        (modelopt_config("NVFP4", group_size=32), "group_size is 32; 16 can be run"),
        (modelopt_config("MIXED_PRECISION"), "quantized_layers names no layer"),
        (
            modelopt_config("MIXED_PRECISION", quantized_layers={"m": {"quant_algo": "W8A8_SQ_PER_CHANNEL"}}),
            "quant_algo is 'W8A8_SQ_PER_CHANNEL'",
        ),
        ({"quant_method": "exl3", "bits": 3.5}, "packed as 'exl3'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size is"),
        ({"quant_method": "fp8", "weight_block_size": [128, -1]}, "weight_block_size is"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
        ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type is 'int4'; nf4, fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage"),
        ({"quant_method": "mxfp4"}, "model_type is 'llama'; gpt_oss can be run"),
        (compressed_config("mxfp6-pack-quantized"), "format is 'mxfp6-pack-quantized'; pack-quantized, "),
        (compressed_config("nvfp4-pack-quantized", **{**NVFP4, "symmetric": False}), "symmetric is False; True can"),
        (compressed_config("nvfp4-pack-quantized", **{**NVFP4, "group_size": None}), "there is no group_size"),
        (compressed_config("pack-quantized", num_bits=3), "num_bits is 3; 4, 8 can be run"),
        (compressed_config("float-quantized", num_bits=6, type="float"), "num_bits is 6; 4, 8 can be run"),
        (compressed_config("float-quantized", num_bits=4, type="float"), "strategy is 'tensor'; tensor_group, group"),
        (compressed_config("pack-quantized", strategy="group"), "there is no group_size"),
        (compressed_config("pack-quantized", strategy="tensor_group", group_size=16), "strategy is 'tensor_group'"),
        (compressed_config("float-quantized", type="float", strategy="block"), "block_structure is None"),
        ({**compressed_config("pack-quantized"), "config_groups": {}}, "describe no weights"),
        ({**compressed_config("dense"), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({**compressed_config("dense"), "transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
    ],
)
def test_configs_that_cannot_be_run_are_refused(config, message):
    file = Path("some/config.json")
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        read_format({"model_type": "llama", "quantization_config": config}, file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_weights_of_mlx_are_named_as_such(key):
    values = {"group_size": 64, "bits": 4}
    config = {"model_type": "llama", "quantization": values, key: values}
    with pytest.raises(UnsupportedModelError, match="packed as MLX, Apple's library"):
        read_format(config, Path("config.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "bits", "w_bit", "group_size", "version", "zero_point", "checkpoint_format", "dynamic", "fmt", "weight_block_size",
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "format", "config_groups", "sparsity_config", "strategy",
    "quant_algo", "quantization", "quantized_layers",
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(METHODS)) | JSON, st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
def test_any_config_is_understood_or_refused(method, values):
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": method, **values}}
    try:
        packing = read_format(config, Path("config.json"))
    except OffloadError as error:
        assert "config.json" in str(error)
    else:
        assert packing is not None and packing.label


@settings(max_examples=100, deadline=None)
@given(JSON, st.sampled_from(["weights", "config_groups", "group_0"]))
def test_any_group_of_compressed_tensors_is_understood_or_refused(value, where):
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    config = compressed_config("int-quantized", **weights)
    if where == "weights":
        config["config_groups"]["group_0"]["weights"] = value
    elif where == "group_0":
        config["config_groups"]["group_0"] = value
    else:
        config["config_groups"] = value
    try:
        assert read_format({"quantization_config": config}, Path("config.json")).label
    except OffloadError as error:
        assert "config.json" in str(error)


@pytest.fixture
def changed(tmp_path):
    """A copy of a packed model with `change` applied to its tensors and `config` to its config.json."""

    def change(case, change=lambda tensors: None, **config):
        source = packed_model(case)
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        values = json.loads((source / "config.json").read_text())
        values["quantization_config"] |= config
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return change


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("case", "leaf", "message"),
    [
        ("awq", "qzeros", r"up_proj\.qzeros is missing for .*up_proj\.qweight"),
        ("awq", "scales", r"up_proj\.scales is missing"),
        ("gptq", "qzeros", r"up_proj\.qzeros is missing"),
        ("awq", "qweight", r"tensors are missing, the first is .*up_proj\.weight"),
        ("int4 groups", "weight_packed", r"up_proj\.weight is missing for .*up_proj\.weight_scale"),
        ("int4 groups", "weight_scale", r"up_proj\.weight_scale is missing for .*up_proj\.weight_packed"),
        ("FP8 blocks", "weight_scale", r"up_proj\.weight is stored as F8_E4M3, but nothing says how"),
        ("DeepSeek FP8", "weight_scale_inv", r"up_proj\.weight is stored as F8_E4M3, but nothing says how"),
        ("bitsandbytes int8", "SCB", r"up_proj\.weight is stored as I8, but nothing says how"),
        ("NVFP4", "weight_packed", r"up_proj\.weight is missing for .*up_proj\.weight_scale"),
        ("NVFP4", "weight_scale", r"up_proj\.weight_scale is missing for .*up_proj\.weight_packed"),
        ("NVFP4", "weight_global_scale", r"up_proj\.weight_packed U8 .* is nothing that the config_groups"),
        ("MXFP8", "weight_scale", r"up_proj\.weight is stored as F8_E4M3, but nothing says how"),
        ("ModelOpt NVFP4", "weight", r"up_proj\.weight is missing for .*up_proj\.weight_scale"),
        ("ModelOpt NVFP4", "weight_scale", r"up_proj\.weight must have shape \[64, 32\] .* \[64, 16\]"),
        ("ModelOpt NVFP4", "weight_scale_2", r"up_proj\.weight_scale_2 is missing for .*up_proj\.weight"),
        ("nf4", "weight.absmax", r"up_proj\.weight\.absmax is missing"),
        ("nf4, scales packed", "weight.nested_absmax", r"up_proj\.weight\.nested_absmax is missing"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", r"up_proj\.weight must have shape \[64, 32\] .* \[1024, 1\]"),
    ],
)
def test_a_missing_tensor_is_named(changed, case, leaf, message):
    directory = changed(case, lambda tensors: tensors.pop(f"{UP}.{leaf}"))
    with pytest.raises(OffloadError, match=message):
        read_everything(directory)


@pytest.mark.parametrize(
    ("case", "leaf", "message"),
    [
        ("awq", "qweight", r"up_proj\.qweight has 33 inputs, which are no whole number of groups of 32"),
        ("awq", "qzeros", r"up_proj\.qzeros has shape .* must have"),
        ("awq", "scales", r"up_proj\.scales has shape .* must have"),
        ("gptq in order of activations", "g_idx", r"up_proj\.g_idx has shape .* must have"),
        ("gptq in order of activations", "scales", r"up_proj\.scales has shape .* must have"),
        ("int4 groups", "weight_scale", r"up_proj\.weight_packed I32 .* is nothing that the config_groups"),
        ("int4 groups, zero points, order", "weight_zero_point", r"weight_zero_point has shape .* must have"),
        ("int8 rows", "weight_scale", r"up_proj\.weight I8 .* is nothing that the config_groups"),
        ("FP8 blocks", "weight_scale", r"up_proj\.weight F8_E4M3 .* is nothing that the config_groups"),
        ("DeepSeek FP8", "weight_scale_inv", r"up_proj\.weight_scale_inv has shape .* must have"),
        ("NVFP4", "weight_packed", r"up_proj\.weight_scale has shape \[64, 2\], but must have \[65, 2\]"),
        ("NVFP4", "weight_scale", r"up_proj\.weight_scale has shape .* must have \[64, 2\]"),
        ("NVFP4", "weight_global_scale", r"up_proj\.weight_global_scale has shape \[2\], but must have \[1\]"),
        ("MXFP4 of matrices", "weight_scale", r"up_proj\.weight_scale has shape .* must have \[64, 1\]"),
        ("MXFP8", "weight_scale", r"up_proj\.weight F8_E4M3 .* is nothing that the config_groups"),
        ("ModelOpt NVFP4", "weight_scale", r"up_proj\.weight_scale has shape .* must have \[64, 2\]"),
        ("ModelOpt MXFP8", "weight_scale", r"up_proj\.weight_scale has shape .* must have \[64, 1\]"),
        ("bitsandbytes int8", "SCB", r"up_proj\.SCB has shape .* must have"),
        ("nf4", "weight", r"up_proj\.weight has shape .* must have"),
        ("nf4, scales packed", "weight.absmax", r"up_proj\.weight\.absmax has shape .* must have"),
        ("nf4", "weight.quant_map", r"up_proj\.weight\.quant_map has shape .* must have"),
    ],
)
def test_a_wrong_shape_is_named(changed, case, leaf, message):
    """One row more than there should be."""

    def lengthen(tensors):
        tensor = tensors[f"{UP}.{leaf}"]
        stored = tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor
        tensors[f"{UP}.{leaf}"] = torch.cat([stored, stored[:1]]).view(tensor.dtype)

    with pytest.raises(OffloadError, match=message):
        read_everything(changed(case, lengthen))


@pytest.mark.parametrize("case", ["MXFP4"])
def test_wrong_shapes_of_experts_are_named(changed, case):
    def cut(leaf):
        return lambda tensors: tensors.update(
            {name: t[:-1].clone() for name, t in tensors.items() if name.endswith(leaf)}
        )

    for leaf in ("0.mlp.experts.down_proj_scales", "0.mlp.experts.down_proj_blocks"):
        with pytest.raises(ModelFilesError, match=r"down_proj_scales has shape"):
            read_everything(changed(case, cut(leaf)))


@pytest.mark.parametrize(
    ("case", "leaf", "dtype"),
    [
        ("awq", "scales", torch.float64),
        ("awq", "qweight", torch.int64),
        ("int4 groups", "weight_scale", torch.int32),
        ("int8 rows", "weight", torch.int16),
        ("DeepSeek FP8", "weight", torch.float8_e5m2),
        ("NVFP4", "weight_scale", torch.bfloat16),
        ("NVFP4", "weight_global_scale", torch.bfloat16),
        ("MXFP4 of matrices", "weight_scale", torch.bfloat16),
        ("ModelOpt NVFP4", "weight_scale_2", torch.float64),
        ("nf4", "weight.absmax", torch.uint8),
    ],
)
def test_a_wrong_dtype_is_named(changed, case, leaf, dtype):
    def cast(tensors):
        tensors[f"{UP}.{leaf}"] = tensors[f"{UP}.{leaf}"].to(dtype)

    with pytest.raises(ModelFilesError, match=rf"up_proj\.{leaf} is stored as "):
        read_everything(changed(case, cast))


@pytest.mark.parametrize("value", [-1, 4, 2**30])
def test_an_order_that_names_no_group_is_refused(changed, value):
    def spoil(tensors):
        tensors[f"{UP}.g_idx"][7] = value

    directory = changed("gptq in order of activations", spoil)
    with pytest.raises(ModelFilesError, match=r"up_proj\.g_idx names groups beyond the 2 there are"):
        read_everything(directory)


@pytest.mark.parametrize(
    ("case", "config", "message"),
    [
        ("awq", {"group_size": 16}, r"qzeros has shape \[1, 8\], but must have \[2, 8\]|must have"),
        ("awq", {"group_size": 40}, "no whole number of groups of 40"),
        ("gptq", {"bits": 8}, "must have"),
        ("gptq", {"group_size": 64}, "groups of 64|must have"),
        ("DeepSeek FP8", {"weight_block_size": [16, 16]}, "must have"),
        ("DeepSeek FP8", {"weight_block_size": None}, "must have"),
        ("int8 rows", compressed_config("int-quantized", num_bits=8, strategy="tensor"), "is nothing that"),
        ("int4 groups", compressed_config("float-quantized", num_bits=8, type="float"), "is nothing that"),
        ("NVFP4", compressed_config("mxfp4-pack-quantized", num_bits=4, **MX), "is nothing that"),
        ("ModelOpt NVFP4", {"quant_algo": "FP8"}, "stored as NVFP4, but quantization_config names FP8 alone"),
        ("ModelOpt MXFP8", {"quant_algo": "NVFP4"}, "stored as MXFP8, but quantization_config names NVFP4 alone"),
        ("ModelOpt NVFP4 and FP8", {"quant_algo": "NVFP4"}, "stored as FP8, but quantization_config names NVFP4"),
        ("nf4", {"bnb_4bit_quant_type": "fp4"}, "says bitsandbytes fp4, but no weight is stored that way"),
        ("awq", {"quant_method": "fp8"}, "says FP8, but no weight is stored that way"),
    ],
)
def test_a_config_of_another_model_is_noticed(changed, case, config, message):
    with pytest.raises(OffloadError, match=message):
        read_everything(changed(case, **config))


def test_inputs_that_are_scaled_first_are_refused(changed):
    """As ModelOpt's AWQ does it, where no norm before takes the scale up."""

    def scale(tensors):
        tensors[f"{UP}.pre_quant_scale"] = torch.ones(32)

    with pytest.raises(UnsupportedModelError, match=r"up_proj\.pre_quant_scale scales the inputs of a module"):
        read_everything(changed("ModelOpt NVFP4", scale))


@pytest.mark.parametrize("leaf", ["gate_up_proj", "gate_up_proj_weight_scale", "gate_up_proj_weight_scale_2"])
def test_wrong_shapes_of_fused_experts_are_named(changed, leaf):
    def shorten(tensors):
        name = next(name for name in tensors if name.endswith(f".experts.{leaf}"))
        tensor = tensors[name]
        tensors[name] = tensor[:1, :3].clone() if tensor.dim() == 3 else tensor.repeat(3)

    with pytest.raises(ModelFilesError, match=r"gate_up_proj.*(has shape|must be)"):
        read_everything(changed("ModelOpt NVFP4, fused experts", shorten))


def test_a_weight_that_is_stored_twice_is_refused(changed):
    def double(tensors):
        tensors[f"{UP}.weight"] = torch.zeros(64, 32)

    with pytest.raises(ModelFilesError, match=r"up_proj\.weight is stored twice"):
        read_everything(changed("awq", double))


def test_experts_that_are_packed_differently_are_refused(changed):
    def reorder(tensors):
        name = "model.layers.1.mlp.experts.2.up_proj.scales"
        tensors[name] = tensors[name].to(torch.bfloat16)

    with pytest.raises(UnsupportedModelError, match=r"2\.up_proj\.weight are parts of .*, but packed differently"):
        read_everything(changed("awq experts", reorder))


def test_a_missing_expert_is_noticed(changed):
    def remove(tensors):
        for leaf in ("qweight", "qzeros", "scales"):
            del tensors[f"model.layers.1.mlp.experts.2.down_proj.{leaf}"]

    with pytest.raises(ModelFilesError, match=r"experts\.down_proj must have shape \[4, .*\[3, "):
        read_everything(changed("awq experts", remove))


@pytest.mark.parametrize("case", ["nf4", "nf4, scales packed"])
def test_damaged_states_are_refused(changed, case):
    """Whatever the JSON beside a 4-bit weight holds, it is refused or right."""
    name = f"{UP}.weight.quant_state.bitsandbytes__nf4"
    generator = random.Random(0)
    source = bytes(load_file(packed_model(case) / "model.safetensors")[name].tolist())
    texts = [b"", b"[]", b"{}", b"{", b"[" * 100_000, source.replace(b"64", b"0"), source.replace(b"64", b"-64")]
    for _ in range(30):
        damaged = bytearray(source)
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        texts.append(bytes(damaged))
    refused = 0
    for text in texts:
        directory = changed(
            case, lambda tensors, text=text: tensors.update({name: torch.tensor(list(text)).to(torch.uint8)})
        )
        try:
            read_spec(directory)
        except OffloadError as error:
            refused += 1
            assert "up_proj" in str(error)
    assert refused > len(texts) / 2


def mutated(tensors, generator):
    """One tensor gone, renamed, of another shape or of another dtype: as headers of damaged or foreign files say."""
    name = generator.choice(sorted(tensors))
    tensor = tensors.pop(name)
    shape = list(tensor.shape) or [1]
    shape[generator.randrange(len(shape))] = generator.choice([0, 1, 7, shape[0] + 1, 2 * shape[-1], 2**40])
    dtype = generator.choice(sorted(STORED_ITEMSIZE))
    change = generator.choice(["gone", "shape", "dtype", "rank", "name"])
    if change == "shape":
        tensors[name] = replace(tensor, shape=tuple(shape))
    elif change == "dtype":
        tensors[name] = replace(tensor, dtype=dtype)
    elif change == "rank":
        tensors[name] = replace(tensor, shape=generator.choice([(), (*shape, 1), tuple(shape[:1])]))
    elif change == "name":
        other = f"{name.rpartition('.')[0]}.{generator.choice(['qweight', 'scales', 'weight', 'weight_scale', 'x'])}"
        tensors[other] = replace(tensor, name=other)
    return f"{change} of {name}"


@pytest.mark.parametrize(
    "case",
    [
        *("awq", "gptq in order of activations", "int4 groups", "FP8 blocks", "nf4", "MXFP4", "NVFP4"),
        *("MXFP8", "ModelOpt NVFP4 and FP8", "ModelOpt NVFP4, fused experts"),
    ],
)
def test_headers_that_contradict_are_understood_or_refused(case):
    """Never anything but our own error, whichever tensor it is that is wrong."""
    directory, generator, refused = packed_model(case), random.Random(1), 0
    for _ in range(25):
        tensors = dict(read_checkpoint(directory).tensors)
        what, checkpoint = mutated(tensors, generator), Checkpoint(directory, tensors)
        try:
            read_everything(directory, checkpoint)
        except OffloadError as error:
            refused += 1
            assert len(str(error)) > 20, what
    assert refused > 15


def read_everything(directory, checkpoint=None):
    checkpoint = checkpoint or read_checkpoint(directory)
    read_spec(directory, "auto", checkpoint)
    map_sources(build_skeleton(directory, torch.float32, "cpu", "eager", checkpoint), checkpoint)


def test_matrices_that_are_used_transposed_are_refused(tmp_path):
    """A square one would pass for the other way round."""
    source = checkpoint("gpt2", n_embd=32, n_layer=1, n_head=2)
    directory = rewrite(
        source, tmp_path / "gpt2", lambda name: name.endswith("attn.c_proj.weight"), gptq, gptq_config()
    )
    with pytest.raises(UnsupportedModelError, match=r"attn\.c_proj\.weight is used transposed"):
        read_everything(directory)
