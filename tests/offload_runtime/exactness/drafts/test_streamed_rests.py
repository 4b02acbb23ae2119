"""`--draft self:N --link packed`: rests alone cross the link, the code that drafts restores the exact weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.dequantize.lossless.pairs import UncheckedPairs
from loaders.errors import ModelFilesError
from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.options.run_options import DEMO_TARGET
from scheduler.plan.expert_choice import ExpertChoice
from scheduler.plan.plan import Tier
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.offload_runtime.exactness import test_shared_texts as shared
from tests.samples.quantized.sixteen_bit_models import SIZES, changed_files, heavy_tailed, in_16_bits, packed_directory
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, make_checkpoint, streaming_runtime

NEW_TOKENS = 24
FAMILIES = ("llama", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe", "olmo2")
DEEP = {**SIZES, "num_hidden_layers": 12}  # else all of them would take less memory than slots and scratch
OPTIONS = {"context_length": 96, "dtype": "float32", "tree": "sequoia", "tree_size": 12, "tree_depth": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return in_16_bits(checkpoint("llama", **DEEP), tmp_path / "model")


def runtime(source: Path, draft: str = "self:4", **options: object) -> OffloadRuntime:
    return streaming_runtime(source, draft, **{**OPTIONS, "link": "packed", **options})


def text(source: Path, draft: str = "self:4", **options: object) -> list[int]:
    with runtime(source, draft, **options) as running:
        assert Tier.DISK in running.plan.tiers
        return running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids


def bytes_of_a_pass(source: Path, draft: str, link: str) -> float:
    with runtime(source, draft, link=link, dtype="bfloat16") as running:
        stats = running.generate(PROMPT, max_new_tokens=12, temperature=0).stats
        planned = running.plan.streamed_bytes
        assert stats.streamed_bytes == planned * stats.passes, "drafting streams nothing"
        return planned


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_text_equals_generate(family, tmp_path):
    alternating = {"layer_types": ["sliding_attention", "full_attention"] * 6} if "gemma" in family else {}
    source = in_16_bits(make_checkpoint(family, 2, False, {**DEEP, **alternating}), tmp_path / "model")
    with runtime(source) as running:
        assert set(running.plan.tiers) == {Tier.DISK} and running._models.target.model._copies is not None
        reply = running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert running._models.memory.peak_bytes <= running.plan.device_budget
    assert reply.token_ids == greedy(source, PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass > 1, "some drafts are accepted, by nine random layers"


@pytest.mark.parametrize(("draft", "only_routed"), [("self:3", True), ("self:4", False), ("self:5", True)])
def test_experts_stream_as_rests(draft, only_routed, tmp_path, monkeypatch):
    """Whole layers of them, and single ones that a pass is routed to; their codes draft."""
    source = in_16_bits(checkpoint("qwen3_moe", **DEEP, num_experts=8), tmp_path / "model")
    monkeypatch.setattr(ExpertChoice, "only_routed", lambda *facts: only_routed)
    with runtime(source, draft) as running:
        target = running._models.target.model
        assert all(codes.keys() > {"mlp.experts.gate_up_proj"} for codes in target._copies._codes.values())
        reply = running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        share = reply.stats.streamed_bytes / reply.stats.passes / target.streamed_bytes
        assert share < 0.99 if only_routed else share == 1
        assert running._models.memory.peak_bytes <= running.plan.device_budget
    assert reply.token_ids == greedy(source, PROMPT, NEW_TOKENS)


@pytest.mark.parametrize(
    ("tree", "draft"), [("adaptive", "self:3"), ("auto", "self:5"), ("chain", "self:3"), ("adaptive", "self:5")]
)
def test_every_kind_of_tree_and_width(tree, draft, source):
    assert text(source, draft, tree=tree) == greedy(source, PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_models_in_either_kind_of_16_bits(dtype, tmp_path):
    """Computed in it: plain streaming, with the same copy, writes the same."""
    source = in_16_bits(checkpoint("llama", **DEEP), tmp_path / "model", getattr(torch, dtype))
    assert text(source, dtype=dtype) == text(source, dtype=dtype, link="plain")


def test_texts_that_share_passes_are_their_own(source):
    with runtime(source, **shared.TREE) as running:
        for prompt, written in zip(shared.PROMPTS, shared.written(running, shared.PROMPTS)):
            assert written == greedy(source, prompt, shared.NEW_TOKENS)[: len(written)]


def test_sampled_texts_follow_the_targets_distribution(tmp_path):
    source = in_16_bits(make_checkpoint("llama", 9, False, {**sampling.TINY, **DEEP}), tmp_path / "model")
    with runtime(source, context_length=32, **sampling.BUSHY) as running:
        assert Tier.DISK in running.plan.tiers and running._models.target.model._copies is not None
        counts, single_passes = sampling.sampled(running, range(400))
    assert sampling.agreement(counts, sampling.distribution_of(source)) > 1e-4
    assert 0.05 < single_passes < 0.95


def test_bytes_of_a_pass(tmp_path):
    """On trained weights and on random ones with heavy tails: at most 0.45 of those in 16 bits."""
    for model in (
        DEMO_TARGET,
        heavy_tailed(tmp_path / "heavy", hidden_size=512, intermediate_size=1024, num_hidden_layers=6),
    ):
        rests, whole = bytes_of_a_pass(model, "self:4", "packed"), bytes_of_a_pass(model, "self:4", "plain")
        assert rests <= 0.45 * whole
        assert bytes_of_a_pass(model, "self:5", "packed") <= 0.37 * whole
        assert bytes_of_a_pass(model, "none", "packed") > 1.5 * rests


def test_the_copy_is_the_code(source):
    """One memory: nothing is held for weights whose code is there, and none of their codes streams."""
    with runtime(source) as running:
        target = running._models.target.model
        codes = [target._weights.resident[index] for index in sorted(target._weights.resident)[1:]]
        assert len(codes) == target.layers
        for number, held in enumerate(codes):
            begin, end = held.data_ptr(), held.data_ptr() + held.nbytes
            parts = {name: part for name, part in target._copies._parts[number].items() if hasattr(part, "code")}
            assert len(parts) == 7 and all(begin <= part.code.data_ptr() < end for part in parts.values())
            assert target._copies._buffers[number].nbytes < 0.1 * held.nbytes, "norms"
        [planned] = [item.device_bytes for item in running.plan.items if "4-bit copy" in item.name]
        own = sum(buffer.nbytes for buffer in target._copies._buffers.values())
        assert planned == own + sum(held.nbytes for held in codes)


def test_layers_in_memory_and_streamed_ones(source):
    """Some layers with both parts on the device, and then all, dequantized at load."""
    expected = greedy(source, PROMPT, NEW_TOKENS)
    with runtime(source, spare=150_000) as running:
        assert set(running.plan.tiers) == {Tier.DEVICE, Tier.DISK}
        assert running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected
    with OffloadRuntime.from_pretrained(source, "self:4", device="cpu", link="packed", **OPTIONS) as running:
        assert set(running.plan.tiers) == {Tier.DEVICE} and running.plan.decoded.target
        resident = running._models.target.model._weights.resident
        assert not sum(buffer.nbytes for index, buffer in resident.items() if index > len(running.plan.tiers)), "freed"
        assert running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected


def exchanged(role: str) -> None:
    """Put what layer 1 has of one matrix into layer 0."""
    first, second = sorted(file for file in packed_directory().glob("*.safetensors") if "00001-of" not in file.name)[:2]
    tensors, others = load_file(first), load_file(second)
    [name] = [name for name in tensors if name.endswith(f"q_proj.weight.{role}")]
    [other] = [name for name in others if name.endswith(f"q_proj.weight.{role}")]
    assert tensors[name].shape == others[other].shape and not torch.equal(tensors[name], others[other])
    save_file({**tensors, name: others[other]}, first, {"format": "pt"})


@pytest.mark.parametrize("role", ["code", "top", "fixed"])
def test_a_code_of_other_weights_is_refused(role, source):
    text(source)
    exchanged(role)
    with pytest.raises(ModelFilesError, match=r"the code and the rest of model.layers.\d.self_attn.q_proj"):
        text(source)
    with pytest.raises(ModelFilesError, match="are not those of the same weights"):
        OffloadRuntime.from_pretrained(source, "self:4", device="cpu", link="packed", **OPTIONS)


def test_without_the_check_other_weights_would_write_another_text(source, monkeypatch):
    """The control: the text comes from the code on the device, and nothing else would notice."""
    expected = text(source)
    exchanged("code")
    monkeypatch.setattr(UncheckedPairs, "check", lambda *weights: None)
    assert text(source) != expected


def test_what_has_no_code_streams_whole(source):
    """A matrix that packing would not shrink, one in float32, and norms: their copies are made as they cross."""

    def changed(name, tensor):
        if "layers.0.mlp.up_proj" in name:
            bits = torch.randint(-(1 << 15), 1 << 15, tensor.shape, generator=torch.Generator().manual_seed(0))
            return (bits.to(torch.int16) & ~0x6000).view(torch.bfloat16)
        return tensor.float() if "layers.1.mlp.down_proj" in name else tensor

    changed_files(source, changed)
    expected = greedy(source, PROMPT, NEW_TOKENS)
    with runtime(source) as running:
        copies = running._models.target.model._copies
        assert running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected
        for number, name in ((0, "mlp.up_proj.weight"), (1, "mlp.down_proj.weight")):
            assert name not in copies._codes[number] and copies._parts[number][name].code.numel()


def test_codes_of_another_width_stream_with_their_rests(source):
    """Files with 5-bit codes beside a 4-bit copy."""
    text(source, "none")
    assert text(packed_directory(), "self:4", link="plain") == greedy(source, PROMPT, NEW_TOKENS)
    with runtime(packed_directory(), "self:4", link="plain") as running:
        assert not any(running._models.target.model._copies._codes.values())
    with runtime(packed_directory(), "self:5", link="plain") as running:
        assert all(running._models.target.model._copies._codes.values())


def test_files_without_checksums_are_not_taken_apart(source, tmp_path):
    """Of an earlier version, given by name; as packed weights of this one they are refused."""
    text(source)
    earlier = shutil.copytree(packed_directory(), tmp_path / "earlier")
    for file in earlier.glob("*.safetensors"):
        tensors = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(".checksum")}
        save_file(tensors, file, {"format": "pt"})
    with runtime(earlier, link="plain") as running:
        assert not any(running._models.target.model._copies._codes.values())
        written = running.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids
    assert written == greedy(source, PROMPT, NEW_TOKENS)
    text(source, "self:5", quantized_directory=tmp_path / "five")
    with pytest.raises(UsageError, match=r"five: holds weights .* or are to be packed differently"):
        text(source, "self:4", quantized_directory=tmp_path / "five")
