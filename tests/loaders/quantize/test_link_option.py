"""`--link packed`: the weights are restored bit for bit, whatever crosses the link, which is 0.7 of their bytes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.cache_directory import cache_directory
from loaders.dequantize.lossless import pairs
from loaders.dequantize.lossless.pairs import UncheckedPairs
from loaders.dequantize.plain import decode
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.quantize import lossless_recipe, write_lossless
from loaders.quantize.work_directory import begun_bytes
from loaders.safetensors_files.headers import STORED_ITEMSIZE, read_checkpoint
from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.options.run_options import DEMO_TARGET, Options
from offload_runtime.planning.planning import prepare
from scheduler.plan.expert_choice import ExpertChoice
from scheduler.plan.plan import Tier
from tests.samples.quantized.quantized_models import packed_weights, stored_tensors
from tests.samples.quantized.sixteen_bit_models import SIZES, changed_files, heavy_tailed, in_16_bits, packed_directory
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

NEW_TOKENS = 16
FAMILIES = ("llama", "gemma3_text", "phi3", "qwen3_moe", "mixtral", "deepseek_v3", "qwen3_next", "gpt_neox")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return in_16_bits(checkpoint("llama", **SIZES), tmp_path / "model")


def text(source: Path, **options: object) -> tuple[list[int], int]:
    """What is written, streamed, and the bytes of a pass."""
    options = {"context_length": 96, "link": "packed", "dtype": "float32", **options}
    with streaming_runtime(source, **options) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        return reply.token_ids, reply.stats.streamed_bytes // reply.stats.passes


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.bfloat16) for family in FAMILIES), ("qwen3_moe", torch.float16)]
)
def test_packed_models_write_the_models_own_text(family, dtype, tmp_path):
    """With trees, streamed; experts are packed too, and what the model takes apart is left as it is."""
    sizes = {name: size for name, size in SIZES.items() if (family, name) != ("deepseek_v3", "head_dim")}
    source = in_16_bits(checkpoint(family, **sizes), tmp_path / "model", dtype)
    expected = greedy(source, PROMPT, NEW_TOKENS)
    draft = perturbed(source, 0.02)
    written, _ = text(source, draft=draft, tree="sequoia", tree_size=6, tree_depth=3)
    assert written == expected
    before, after, weights = (
        stored_tensors(source),
        stored_tensors(packed_directory()),
        packed_weights(packed_directory()),
    )
    assert weights
    stored = read_checkpoint(packed_directory()).tensors.values()
    assert all(tensor.offset % STORED_ITEMSIZE[tensor.dtype] == 0 for tensor in stored)
    for name, weight in weights.items():
        out = torch.empty(weight.shape, dtype=dtype)
        decode(weight.scheme, {role: after[stored.name] for role, stored in weight.operands.items()}, out)
        assert torch.equal(out.view(torch.int16), before[name].view(torch.int16))


def test_weights_that_were_changed_change_the_text(source, monkeypatch):
    """The negative control: the text does come from the packed files, and nothing but the checksums would notice."""
    expected, _ = text(source)
    monkeypatch.setattr(UncheckedPairs, "check", lambda *weights: None)
    directory = packed_directory()
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith(".fixed")]:
            tensors[name] ^= 0x55
        save_file(tensors, file, {"format": "pt"})
    assert text(source)[0] != expected


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_damaged_bit_is_refused_by_name(family, resident, tmp_path):
    """Where codes and rests stream together, too; of experts, those that a pass is routed to."""
    source = in_16_bits(checkpoint(family, **SIZES), tmp_path / "model")
    text(source, draft="none")

    def damaged(name, tensor):
        if "layers.1." in name and name.endswith(".fixed"):
            tensor[-1] ^= 0x80
        return tensor

    changed_files(packed_directory(), damaged)
    with pytest.raises(ModelFilesError, match=r"the code and the rest of model.layers.1.* or are damaged"):
        if resident:
            OffloadRuntime.from_pretrained(source, "none", device="cpu", link="packed", context_length=96)
        else:
            text(source, draft="none")


def test_single_experts_are_checked_when_they_come(tmp_path, monkeypatch):
    """Each once, however few a pass is routed to."""
    source = in_16_bits(checkpoint("qwen3_moe", **SIZES), tmp_path / "model")
    sums, checked = pairs.checksum, []
    monkeypatch.setattr(pairs, "checksum", lambda operands, count: (checked.append(count), sums(operands, count))[1])
    monkeypatch.setattr(ExpertChoice, "only_routed", lambda *facts: True)
    with streaming_runtime(source, "none", context_length=96, link="packed", dtype="float32") as runtime:
        runtime.generate([5], max_new_tokens=1, temperature=0)
        first = sum(checked)
        written = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids
        assert written == greedy(source, PROMPT, NEW_TOKENS)
        weights = packed_weights(packed_directory())
        assert first < sum(checked) <= len(weights)


def test_files_of_another_model_are_refused(source, tmp_path):
    """Of the same shapes, with whole pairs: only their mark tells that the weights are others."""
    other = in_16_bits(checkpoint("llama", seed=3, **SIZES), tmp_path / "other")
    text(source)
    kept = packed_directory()
    text(other, quantized_directory=tmp_path / "packed")
    file = sorted(kept.glob("*.safetensors"))[-1]
    shutil.copyfile(tmp_path / "packed" / file.name, file)
    with pytest.raises(ModelFilesError, match=r"the code and the rest of model.layers.2.* are not those of the same"):
        text(source)


def test_bytes_of_a_pass(source):
    """On trained weights and on random ones with heavy tails: at most 0.71 of those in 16 bits."""
    for model in (DEMO_TARGET, heavy_tailed(source.with_name("heavy"))):
        shares = [text(model, dtype="bfloat16", draft="none", link=link)[1] for link in ("packed", "plain")]
        assert shares[0] <= 0.71 * shares[1]


def test_packed_once_and_found_again(source, monkeypatch):
    first, _ = text(source)
    monkeypatch.setattr(write_lossless, "encode", None)
    assert text(source)[0] == first
    assert "packed at the first start" not in str(prepare(Options(source, device="cpu", link="packed")).packing)


def test_an_interrupted_start_goes_on(source, monkeypatch):
    """From the layers that are done; what another version of the model left is not taken up."""
    plain, _ = text(source, link="plain")
    write, written = write_lossless._write_unit, []

    def broken(file, tensors):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file.name)
        write(file, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(write_lossless, "_write_unit", broken)
        with pytest.raises(KeyboardInterrupt):
            text(source)
    packing = prepare(Options(source, device="cpu", link="packed")).packing
    assert begun_bytes(packing.directory) > 0 and not packing.directory.exists()
    done = []
    monkeypatch.setattr(
        write_lossless, "_write_unit", lambda file, tensors: (done.append(file.name), write(file, tensors))
    )
    assert text(source)[0] == plain
    assert done and not set(done) & set(written)


def test_a_full_disk_leaves_nothing(source, monkeypatch):
    def full(file, tensors):
        raise ModelFilesError(f"{file}: writing failed: No space left on device.")

    monkeypatch.setattr(write_lossless, "_write_unit", full)
    with pytest.raises(ModelFilesError, match="No space left"):
        text(source)
    assert not [*(cache_directory() / "quantized").iterdir()]


def test_a_matrix_that_would_grow_stays_as_it_is(source, tmp_path):
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        grown = [name for name in tensors if "layers.0.mlp.up_proj" in name]
        for name in grown:
            bits = torch.randint(-(1 << 15), 1 << 15, tensors[name].shape, generator=torch.Generator().manual_seed(0))
            tensors[name] = (bits.to(torch.int16) & ~0x6000).view(torch.bfloat16)  # of all sizes, and finite
        save_file(tensors, file, {"format": "pt"})
    expected = greedy(source, PROMPT, 4)
    with streaming_runtime(source, context_length=96, link="packed", dtype="float32") as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids == expected
    weights = packed_weights(packed_directory())
    assert grown[0] not in weights and grown[0].replace("layers.0", "layers.1") in weights


def test_what_cannot_be_packed_is_refused_by_name(source, tmp_path):
    with pytest.raises(UnsupportedModelError, match="not stored as matrices of bfloat16 or float16"):
        prepare(Options(checkpoint("llama"), device="cpu", link="packed"))
    with pytest.raises(UsageError, match="not with --quantize"):
        Options(source, quantize="int4", link="packed")
    text(source)
    with pytest.raises(UnsupportedModelError, match="packed already"):
        prepare(Options(packed_directory(), device="cpu", link="packed"))


def test_the_plan_expects_about_what_is_written(source):
    packing = prepare(Options(DEMO_TARGET, device="cpu", link="packed")).packing
    text(DEMO_TARGET, dtype="bfloat16", draft="none")
    written = sum(file.stat().st_size for file in packing.directory.glob("*.safetensors"))
    assert packing.quantization.nbytes == pytest.approx(written, rel=0.03)
    assert lossless_recipe.BITS == 5 and "5-bit codes" in str(packing)
    with OffloadRuntime.from_pretrained(packing.directory, "none", device="cpu", context_length=64) as runtime:
        assert runtime.generate("Once", max_new_tokens=4, temperature=0).token_ids
