"""Families whose tensors converters split, interleave, transpose or reorder: text is that of the decoded weights."""

import os
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.read_spec import read_config, read_spec
from loaders.dequantize.hooks import scratch_bytes
from loaders.dequantize.plain import decode
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.formats.gguf import GgufFormat
from loaders.formats.schemes import Pieces
from loaders.gguf.families import known
from loaders.gguf.header import GgufTensor, read_gguf
from loaders.gguf.placement import RowOrder
from loaders.gguf.tensors import model_tensors
from loaders.modules.layout import TORCH_DTYPES
from loaders.modules.skeleton import build_skeleton
from scheduler.plan.plan import Tier
from tests.samples.gguf_families.known import SAMPLES, family_file
from tests.samples.gguf_families.layer_norms import LAYER_NORMS
from tests.samples.gguf_families.mamba import FALCON_MULTIPLIERS
from tests.samples.gguf_families.recurrent import LAYERS
from tests.samples.gguf_families.rewriting import rewritten
from tests.samples.gguf_families.writing import write
from tests.samples.gguf_samples import gguf
from tests.samples.tiny_models import PROMPT, greedy, perturbed, streaming_runtime

NEW_TOKENS = 64
TREE = {"context_length": 112, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
KNOWN = [case for case, sample in SAMPLES.items() if sample.model_type in CONFIG_MAPPING]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_case = pytest.mark.parametrize("case", KNOWN)
NOT_COMPARED = {"quantization_config", "dtype", "architectures", "pad_token_id", "eos_token_id", "rope_parameters"}
# There is nothing of this width; under another name.
NOT_THERE = {
    "qwen35moe": {"intermediate_size"},
    **dict.fromkeys(("lfm2", "lfm2moe", "nemotron_h"), frozenset({"rms_norm_eps"})),
    "nemotron_h_moe": {"rms_norm_eps", "intermediate_size"},
    "falcon-h1": {*FALCON_MULTIPLIERS},
}


@every_case
def test_streamed_text_is_that_of_the_decoded_weights(case):
    """Every other case with a tree from a draft that is sometimes right, the others plainly."""
    file = family_file(case)
    has_draft = KNOWN.index(case) % 2 and case != "jamba"  # whose states cannot branch
    draft = perturbed(file.parent / "decoded", 0.02) if has_draft else "none"
    tree = {**TREE, "tree": "none"} if case == "jamba" else TREE
    with streaming_runtime(file, draft, dtype="float32", **tree) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    assert reply.token_ids == greedy(file.parent / "decoded", PROMPT, NEW_TOKENS)


def value_of(config, name):
    """What is written of a config: some attributes differ by layer, and cannot be read."""
    values = config.to_dict()
    return values[name] if name in values else getattr(config, name, None)


@every_case
def test_the_config_is_the_original_s(case):
    values = read_config(family_file(case))
    found, original = AutoConfig.for_model(**values), AutoConfig.from_pretrained(family_file(case).parent / "decoded")
    assert type(found) is type(original) and original.architectures == values["architectures"]
    for name in values.keys() - NOT_COMPARED - NOT_THERE.get(case, set()):
        value = value_of(original, name)
        assert value_of(found, name) == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    assert found.to_dict().get("per_layer_config") == original.to_dict().get("per_layer_config")
    for name, value in (getattr(original, "rope_parameters", None) or {}).items():
        assert found.rope_parameters[name] == value or name == "mrope_section"


@every_case
def test_sizes_are_those_of_the_skeleton(case):
    file = family_file(case)
    for dtype in ("float32", "bfloat16"):
        spec, skeleton = read_spec(file, dtype), build_skeleton(file, getattr(torch, dtype), "cpu", "eager")
        planned, used = [layer.nbytes for layer in spec.layers], [layer.layout.nbytes for layer in skeleton.layers]
        assert planned == used
        assert (spec.decode_bytes, spec.embeddings_and_head_bytes) == (
            scratch_bytes(skeleton.packed),
            skeleton.embeddings_and_head.layout.nbytes,
        )


def operands_of(weight) -> dict[str, torch.Tensor]:
    found = {}
    for role, tensor in weight.operands.items():
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset)
            content = bytearray(stream.read(tensor.nbytes))
        found[role] = torch.frombuffer(content, dtype=TORCH_DTYPES[tensor.dtype]).view(tensor.shape)
    return found


# Families that no weight of is put together from parts, or in another order than it is stored in.
AS_STORED = (
    *("smollm3", "olmo2", "olmo3", "seed_oss", "granite", "glm4", "ernie4_5", "hunyuan-dense", "gemma4", "gemma"),
    *("gemma4 with experts", "gemma3n", "exaone4", "mistral3", "qwen2vl", "qwen3vl", "lfm2"),
    *LAYER_NORMS,
    *("falcon-h1", "nemotron_h", "nemotron_h_moe"),
)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: PyTorch for CUDA brings it")
@every_case
def test_the_fused_kernel_places_what_plain_torch_places(case):
    """And leaves experts alone that no token is routed to."""
    from loaders.dequantize.kernels import decode_fused

    tensors = model_tensors(read_gguf(family_file(case)))
    weights = [w for w in GgufFormat("Q8_0").weights(tensors) if isinstance(w.scheme, Pieces) or w.scheme.tiles]
    assert bool(weights) == (case not in AS_STORED)
    for weight in {(weight.scheme, weight.shape): weight for weight in weights}.values():
        operands = operands_of(weight)
        expected, found = torch.empty(weight.shape), torch.full(weight.shape, torch.nan, device=DEVICE)
        decode(weight.scheme, operands, expected)
        assert not expected.isnan().any()
        on_device = {role: tensor.to(DEVICE) for role, tensor in operands.items()}
        decode_fused(weight.scheme, on_device, found)
        assert torch.equal(found.cpu(), expected), weight.name
        if isinstance(weight.scheme, Pieces) and weight.scheme.by_expert:
            routed = torch.zeros(weight.shape[0], dtype=torch.uint8, device=DEVICE)
            routed[1] = 1
            decode_fused(weight.scheme, on_device, found.fill_(torch.nan), routed)
            assert torch.equal(found[1].cpu(), expected[1]) and found[[0, 2, 3]].isnan().all()


CONTROLS = {
    "granitemoe with shared experts": ("ffn_up_shexp", lambda place: RowOrder(end=32)),
    "gpt-oss": ("ffn_gate_exps", lambda place: RowOrder(end=64)),
    "deepseek v3": ("attn_v_b", lambda place: replace(place, begin=0, end=8)),
    "qwen3next": ("attn_gate", lambda place: replace(place, begin=place.begin - 8, end=place.end - 8)),
    "qwen35": ("attn_gate", lambda place: replace(place, tiles=place.groups, groups=place.tiles)),
}


@pytest.mark.parametrize("case", CONTROLS)
def test_where_values_belong_matters(case, monkeypatch):
    """The control: other rows give another text."""
    leaf, change = CONTROLS[case]
    part_of = GgufTensor.part_of

    def moved(tensor, whole, role, placement):
        return part_of(tensor, whole, role, change(placement) if leaf in tensor.name else placement)

    monkeypatch.setattr(GgufTensor, "part_of", moved)
    file = family_file(case)
    with streaming_runtime(file, dtype="float32", context_length=112, tree="none") as runtime:
        text = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids
    assert text != greedy(file.parent / "decoded", PROMPT, NEW_TOKENS)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("qwen35", {"norms_plus_one": False}),
        ("qwen35", {"own_norms": frozenset()}),
        ("gemma", {"norms_plus_one": False}),
        ("mistral3", {"paired": False}),
        ("arcee", {"paired": False}),
        ("nemotron", {"norms_plus_one": False}),
    ],
)
def test_what_dequantizing_undoes_matters(case, change, monkeypatch):
    monkeypatch.setitem(known.FAMILIES, case, replace(known.FAMILIES[case], **change))
    file = family_file(case)
    with streaming_runtime(file, dtype="float32", context_length=112, tree="none") as runtime:
        text = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids
    assert text != greedy(file.parent / "decoded", PROMPT, NEW_TOKENS)


# Their last layer is of full attention, as heads are.
WITH_HEADS = {
    "glm4moe": {},
    "exaone-moe": {},
    **{case: {"num_hidden_layers": 2, "layer_types": LAYERS["layer_types"][:2]} for case in ("qwen35", "qwen35moe")},
}


@pytest.mark.parametrize("case", WITH_HEADS)
def test_a_head_in_the_file_drafts_as_that_of_the_checkpoint(case, tmp_path):
    """The text is the target's, and every pass accepts what it accepts there."""
    sample = replace(SAMPLES[case], changes=SAMPLES[case].changes | WITH_HEADS[case])
    file = write(sample, tmp_path, with_head=True)
    layers = AutoConfig.from_pretrained(file.parent / "decoded").num_hidden_layers
    assert read_config(file)["num_hidden_layers"] == layers == len(read_spec(file).layers)
    options = {"dtype": "float32", "context_length": 112, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
    expected, sampled = greedy(file.parent / "decoded", PROMPT, NEW_TOKENS), []
    for model in (file, file.parent / "decoded"):
        with streaming_runtime(model, "mtp", **options) as runtime:
            assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected
            steps = runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=1.0, seed=5)
            sampled.append([(step.accepted, step.token_ids) for step in steps])
    assert sampled[0] == sampled[1] and any(accepted for accepted, _ in sampled[0])


def test_files_without_a_head_are_refused_by_name_as_drafts():
    with pytest.raises(UnsupportedModelError, match="hold no head for multi-token prediction"):
        streaming_runtime(family_file("glm4moe"), "mtp", context_length=112)


SECTIONS = ([8, 12, 12, 0], [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32])
ROTATES = (True, [gguf.GGUFValueType.BOOL])
OTHERS = {  # under the name of a known architecture, which would give another text
    "GLM-4V": ("glm4", lambda values, tensors: values.update({"glm4.rope.dimension_sections": SECTIONS})),
    "Bamba": ("granitehybrid", lambda v, tensors: v.update({"granitehybrid.rope.scaling.finetuned": ROTATES})),
    "output layer is the embedding": ("falcon-h1", lambda values, tensors: tensors.pop("output.weight")),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_other_models_under_the_same_name_are_refused(fault, tmp_path):
    case, change = OTHERS[fault]
    with pytest.raises(UnsupportedModelError, match=fault):
        read_config(rewritten(family_file(case), tmp_path, change))


UINT32 = [gguf.GGUFValueType.UINT32]
DAMAGED = {
    "half of the experts": (
        "glm4moe",
        lambda v, t: t.pop("blk.1.ffn_up_exps.weight"),
        "holds .*gate_up_proj.gate",
    ),
    "keys without values": ("deepseek v3", lambda v, t: t.pop("blk.0.attn_v_b.weight"), "kv_b_proj.weight needs"),
    "another number of experts": (
        "gpt-oss",
        lambda v, t: v.update({"gpt-oss.expert_count": (5, UINT32)}),
        "must have .experts, outputs, inputs. for 5 experts",
    ),
    "more layers ahead than there are": (
        "glm4moe",
        lambda v, t: v.update({"glm4moe.nextn_predict_layers": (3, UINT32)}),
        "3 of 3 layers are to predict",
    ),
    "heads of another width": (
        "qwen3next",
        lambda v, t: v.update({"qwen3next.ssm.state_size": (16, UINT32)}),
        "in_proj_qkvz|rows, but by the metadata",
    ),
    "more groups than heads": (
        "qwen35",
        lambda v, t: v.update({"qwen35.ssm.group_count": (4, UINT32)}),
        "rows|part of",
    ),
    "an activation function without a value": (
        "apertus",
        lambda v, t: v.pop("xielu.beta"),
        "xielu.beta must list a number for each of 3 layers",
    ),
    "fewer hidden states than matrices": (
        "gemma3n",
        lambda v, t: v.update({"gemma3n.altup.num_inputs": (3, UINT32)}),
        "a matrix for each hidden state but one",
    ),
    "layers of attention side by side": (
        "jamba",
        lambda v, t: v.update({"jamba.attention.head_count_kv": ([0, 2, 2, 0], v["jamba.attention.head_count_kv"][1])}),
        "which no Jamba model has",
    ),
    "attention in a layer that only predicts ahead": (
        "jamba",
        lambda v, t: v.update(
            {
                "jamba.attention.head_count_kv": ([0, 0, 0, 2], v["jamba.attention.head_count_kv"][1]),
                "jamba.nextn_predict_layers": (1, UINT32),
            }
        ),
        "which no Jamba model has",
    ),
    "a latent of another width": (
        "deepseek v3",
        lambda v, t: v.update({"deepseek2.attention.key_length_mla": (20, UINT32)}),
        "kv_b_proj",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_parts_that_cannot_be_a_whole_are_refused(case, tmp_path):
    family, change, fault = DAMAGED[case]
    file = rewritten(family_file(family), tmp_path, change)
    with pytest.raises(ModelFilesError, match=fault) as caught:
        read_spec(file)
        build_skeleton(file, torch.float32, "cpu", "eager", model_source(file).checkpoint())
    assert str(file) in str(caught.value)
