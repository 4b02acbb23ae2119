"""Codes and rests that lie apart, in files and in memory, restore every bit, and reading rests reads nothing else."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loaders.checkpoint.low_bit_copy import with_resident_codes
from loaders.checkpoint.read_spec import read_spec
from loaders.dequantize.lossless.pairs import UncheckedPairs
from loaders.dequantize.stacks import decode_stack
from loaders.errors import ModelFilesError
from loaders.io.byte_ranges import ByteRanges, bytes_on_disk
from loaders.io.expert_parts import split_experts
from loaders.io.reader import WeightReader
from loaders.io.sources import code_sources, map_sources
from loaders.lossless import checksum as checksums
from loaders.lossless.checksum import ROLES, checksum
from loaders.modules.codes_apart import with_codes_apart
from loaders.modules.skeleton import Skeleton, UnitLayout, build_skeleton, make_parameters
from loaders.quantize import write_lossless
from loaders.quantize.lossless_recipe import LosslessRecipe
from loaders.safetensors_files.headers import Checkpoint, read_checkpoint
from tests.samples.quantized.quantized_models import stored_tensors
from tests.samples.quantized.sixteen_bit_models import changed_files, in_16_bits
from tests.samples.tiny_models import checkpoint

LARGER = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}


def packed(source: Path, bits: int) -> Path:
    recipe = LosslessRecipe.of(read_checkpoint(source), {}, bits)
    write_lossless.write_lossless(recipe, source.with_name(f"packed {bits}"), "mark")
    return source.with_name(f"packed {bits}")


def apart(directory: Path, dtype: torch.dtype, bits: int) -> tuple[Skeleton, Checkpoint]:
    stored = read_checkpoint(directory)
    return with_codes_apart(build_skeleton(directory, dtype, "cpu", "eager", stored), bits), stored


def filled(reader: WeightReader, layer: UnitLayout, ranges: ByteRanges) -> None:
    buffer = torch.full((layer.layout.nbytes,), 0xA5, dtype=torch.uint8)
    reader.fill(ranges, buffer)
    layer.bind(make_parameters(layer.layout, buffer))


def restored(skeleton: Skeleton, stored: Checkpoint) -> dict[str, Tensor]:
    """Every weight whose code lies apart, from buffers of the two parts."""
    weights = {}
    with WeightReader(stored.files, "buffered", threads=2) as reader:
        sources, codes = map_sources(skeleton, stored)[0], code_sources(skeleton)
        for layer, ranges, of_code in zip(skeleton.layers, sources, codes, strict=True):
            assert layer.code is not None
            filled(reader, layer.code, of_code)
            filled(reader, layer, ranges)
            packed = [parameter.packed for parameter in layer.packed.values()]
            UncheckedPairs(packed).check(packed)
            for parameter in layer.code.packed.values():
                weights[parameter.name] = torch.empty(parameter.packed.shape, dtype=parameter.dtype)
                decode_stack(parameter.packed, weights[parameter.name])
    return weights


def adversarial(name: str, tensor: Tensor) -> Tensor:
    """Every pattern of 16 bits, in order and mixed; zeros, outliers, and columns of all sizes."""
    if tensor.dim() != 2 or "layers" not in name:
        return tensor
    generator, count = torch.Generator().manual_seed(0), tensor.numel()
    random = torch.rand(tensor.shape, generator=generator)
    if "q_proj" in name or "gate_proj" in name:
        order = torch.arange(count) if "q_proj" in name else torch.randperm(count, generator=generator)
        return order.to(torch.int32).to(torch.int16).view(tensor.dtype).view(tensor.shape)
    changed = {
        "k_proj": torch.where(random < 0.6, -0.0, tensor.float()),
        "v_proj": torch.where(random < 0.01, 1e8 * tensor.float(), tensor.float()),
        "o_proj": tensor.float() * torch.logspace(-38, 38, tensor.shape[1]),
    }
    return next((one.to(tensor.dtype) for part, one in changed.items() if part in name), tensor)


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_bit_is_restored(bits, dtype, tmp_path, monkeypatch):
    """Of the patterns that packing would leave as they are, too."""
    monkeypatch.setattr(write_lossless, "LEAST_SAVED", -math.inf)
    source = in_16_bits(checkpoint("llama", num_hidden_layers=2, **LARGER), tmp_path / "model", dtype)
    changed_files(source, adversarial)
    given, weights = stored_tensors(source), restored(*apart(packed(source, bits), dtype, bits))
    assert len(weights) == 2 * 7
    for name, weight in weights.items():
        assert torch.equal(weight.view(torch.int16), given[name].view(torch.int16)), name


def test_rests_are_one_read(tmp_path):
    """All that a layer streams lies together in its file, with nothing else between."""
    source = in_16_bits(checkpoint("llama", **LARGER), tmp_path / "model")
    skeleton, stored = apart(packed(source, 4), torch.bfloat16, 4)
    for layer, ranges, of_code in zip(skeleton.layers, map_sources(skeleton, stored)[0], code_sources(skeleton)):
        places = {place.name for place in layer.layout.places}
        assert not {place.name for place in layer.code.layout.places} & places
        begin, end = ranges[0].file_offset, ranges[-1].file_stop
        assert end - begin == bytes_on_disk(ranges) and of_code[-1].file_stop <= begin


def test_planned_sizes_of_experts(tmp_path):
    """From the headers alone; parts that are stacked are aligned together, which is not known before."""
    source = in_16_bits(checkpoint("mixtral", **LARGER), tmp_path / "model")
    directory = packed(source, 4)
    skeleton, stored = apart(directory, torch.bfloat16, 4)
    spec = with_resident_codes(read_spec(directory), 4)
    for planned, layer, ranges in zip(spec.layers, skeleton.layers, map_sources(skeleton, stored)[0]):
        assert len(layer.code.packed) == 6 and layer.experts is not None and planned.experts == 4
        assert planned.resident_code_bytes == layer.code.layout.nbytes
        assert planned.disk_bytes == bytes_on_disk(ranges)
        parts = split_experts(layer, ranges)
        singly = sum(span.nbytes_on_disk for span in parts.of(range(4)))
        assert planned.expert_disk_bytes == singly and planned.nbytes == pytest.approx(layer.layout.nbytes, abs=2048)
        assert planned.expert_bytes == pytest.approx(layer.layout.nbytes - layer.dense_bytes, abs=2048)
        assert planned.nbytes - planned.expert_bytes == pytest.approx(layer.dense_bytes, abs=2048)


def test_planned_sizes_are_exact(tmp_path):
    """Of what streams and of what stays, from the headers alone."""
    source = in_16_bits(checkpoint("llama", **LARGER), tmp_path / "model")
    directory = packed(source, 4)
    skeleton, stored = apart(directory, torch.bfloat16, 4)
    whole, spec = read_spec(directory), with_resident_codes(read_spec(directory), 4)
    assert with_resident_codes(whole, 5) == whole
    for planned, before, layer, ranges in zip(
        spec.layers, whole.layers, skeleton.layers, map_sources(skeleton, stored)[0]
    ):
        assert (planned.nbytes, planned.disk_bytes) == (layer.layout.nbytes, bytes_on_disk(ranges))
        assert planned.resident_code_bytes == layer.code.layout.nbytes
        assert planned.weight_bytes == before.weight_bytes and planned.nbytes < 0.65 * before.nbytes


@pytest.mark.parametrize("role", ROLES)
def test_one_exchanged_bit_is_refused(role, tmp_path):
    source = in_16_bits(checkpoint("llama", num_hidden_layers=1, **LARGER), tmp_path / "model")
    directory = packed(source, 4)

    def changed(name, tensor):
        if name.endswith(f"layers.0.mlp.up_proj.weight.{role}"):
            tensor.view(-1).view(torch.uint8)[-1] ^= 0x80
        return tensor

    changed_files(directory, changed)
    with pytest.raises(ModelFilesError, match=r"the code and the rest of model.layers.0.mlp.up_proj.weight are not"):
        restored(*apart(directory, torch.bfloat16, 4))


def test_a_checksum_tells_orders_apart():
    operands = {role: torch.arange(512, dtype=torch.uint8) for role in ROLES}
    values = {checksum(operands).item()}
    for role in ROLES:
        values.add(checksum({**operands, role: operands[role].flip(0)}).item())
        values.add(checksum({**operands, role: operands[role][:-1]}).item())
    assert len(values) == 1 + 2 * len(ROLES)


def test_stacked_weights_have_the_checksums_of_each():
    generator = torch.Generator().manual_seed(0)
    stacked = {role: torch.randint(0, 256, (3, 1003), dtype=torch.uint8, generator=generator) for role in ROLES}
    singly = [checksum({role: stacked[role][number] for role in ROLES}) for number in range(3)]
    assert torch.equal(checksum(stacked, 3), torch.cat(singly)) and len(torch.cat(singly).unique()) == 3


def test_a_checksum_of_many_words_is_that_of_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    operands = {role: torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=generator) for role in ROLES}
    whole = checksum(operands)
    monkeypatch.setattr(checksums, "WORDS", 16)
    assert torch.equal(checksum(operands), whole)
