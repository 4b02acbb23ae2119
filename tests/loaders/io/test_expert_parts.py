"""A layer taken apart by experts: every byte is in one part, and the plan knows the sizes from names alone."""

from itertools import chain

import pytest
import torch
from transformers import CONFIG_MAPPING

from loaders.checkpoint.expert_names import ALL_EXPERTS_AT_ONCE
from loaders.checkpoint.read_spec import read_config, read_spec
from loaders.io.byte_ranges import bytes_on_disk
from loaders.io.expert_parts import split_experts
from loaders.io.reader import WeightReader
from loaders.io.sources import map_sources
from loaders.io.spans import batches, joined
from loaders.modules.experts import routed_among
from loaders.modules.skeleton import build_skeleton
from loaders.safetensors_files.headers import read_checkpoint
from offload_runtime.model.attention import ATTENTION_NAME
from tests.samples.architectures import EXPERTS
from tests.samples.quantized.packed_models import packed_model
from tests.samples.tiny_models import checkpoint

SAMPLE = ["mixtral", "gpt_oss", "deepseek_v3", "awq experts", "MXFP4"]
STATES = ["granitemoehybrid", "lfm2_moe", "qwen3_5_moe_text", "qwen3_next"]


def directory_of(name):
    return packed_model(name) if " " in name or name.isupper() else checkpoint(name)


def opened(name):
    """(skeleton, sources of its layers, reader)"""
    directory = directory_of(name)
    skeleton, stored = build_skeleton(directory, torch.float32, "cpu", ATTENTION_NAME), read_checkpoint(directory)
    return skeleton, map_sources(skeleton, stored)[0], WeightReader(stored.files, "buffered", threads=2)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_parts_are_the_unit(name):
    skeleton, sources, reader = opened(name)
    with reader:
        for layer, source in zip(skeleton.layers, sources):
            parts = split_experts(layer, source)
            assert (parts is None) == (layer.experts is None)
            if parts is None:
                continue
            assert parts.dense.stop == layer.dense_bytes and len(parts.by_expert) == layer.experts.count == 4
            whole, filled = (torch.zeros(layer.layout.nbytes, dtype=torch.uint8) for _ in range(2))
            reader.fill(source, whole)
            reader.fill(parts.dense.ranges, filled[: parts.dense.stop])
            dense = filled.clone()
            assert (
                torch.equal(dense[: parts.dense.stop], whole[: parts.dense.stop])
                and not dense[parts.dense.stop :].any()
            )
            for expert in range(4):
                spans = parts.of([expert])
                reader.fill(joined((span.start, span) for span in spans), filled)
                for place in layer.layout.places[-layer.expert_places :]:
                    ours, theirs = (place.view(buffer).chunk(4)[expert] for buffer in (filled, whole))
                    assert ours.view(torch.uint8).equal(theirs.view(torch.uint8)), place
            assert torch.equal(filled, whole)
            runs = chain(parts.dense.ranges, *(s.ranges for s in parts.of(range(4))))
            assert bytes_on_disk(runs) == bytes_on_disk(source)
    assert any(layer.experts for layer in skeleton.layers)


@pytest.mark.parametrize("nbytes", [256, 1024, 5120, 1 << 20])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_batches_bring_the_same_bytes_through_little_memory(name, nbytes):
    skeleton, sources, reader = opened(name)
    layer, source = skeleton.layers[-1], sources[-1]
    wanted = split_experts(layer, source).of([3, 0])
    direct, staged = (torch.zeros(layer.layout.nbytes, dtype=torch.uint8) for _ in range(2))
    with reader:
        reader.fill(joined((span.start, span) for span in wanted), direct)
        for batch in batches(wanted, nbytes):
            memory = torch.zeros(nbytes, dtype=torch.uint8)
            reader.fill(joined(batch), memory)
            for offset, span in batch:
                assert offset % 256 == 0
                staged[span.start : span.stop] = memory[offset : offset + span.nbytes]
    assert direct.any() and torch.equal(staged, direct)


def test_models_that_compute_with_all_experts_have_no_parts():
    for name in (*(ALL_EXPERTS_AT_ONCE & EXPERTS.keys()), "llama"):
        skeleton, sources, reader = opened(name)
        reader.close()
        assert not any(split_experts(layer, source) for layer, source in zip(skeleton.layers, sources))
        assert not any(layer.experts for layer in read_spec(checkpoint(name)).layers)


@pytest.mark.parametrize("name", [*sorted(EXPERTS), *STATES, "awq experts", "MXFP4"])
def test_the_plan_knows_the_sizes_from_names_alone(name):
    if name in EXPERTS and name not in CONFIG_MAPPING:
        pytest.skip("not in the installed transformers")
    directory = directory_of(name)
    spec, skeleton = read_spec(directory), build_skeleton(directory, torch.float32, "cpu", ATTENTION_NAME)
    for planned, real in zip(spec.layers, skeleton.layers):
        assert planned.experts == (real.experts.count if real.experts else 0)
        # packed parts of one tensor are padded one by one where only names are known
        surplus = planned.expert_bytes - (real.layout.nbytes - real.dense_bytes)
        assert surplus == 0 or (name == "awq experts" and 0 < surplus <= 3 * 256)
    assert spec.experts_per_token == (0 if name in ALL_EXPERTS_AT_ONCE else 2)


@pytest.mark.parametrize(
    "change", [{"num_experts_per_tok": 9}, {"num_experts_per_tok": [0, "2"]}, {"num_experts_per_tok": True}]
)
def test_numbers_that_make_no_sense_leave_the_experts_whole(change):
    directory = checkpoint("qwen3_moe")
    spec = read_spec(directory, config={**read_config(directory), **change})
    assert spec.experts_per_token == 0 and not any(layer.experts for layer in spec.layers)


def test_hits_are_those_chosen_and_none_beyond_the_last():
    assert routed_among(torch.tensor([[2, 0], [2, 7]]), 5).tolist() == [1, 0, 1, 0, 1]
