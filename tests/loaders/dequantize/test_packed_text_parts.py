"""Quantized multimodal models: published ones pack the text model and leave what sees and hears as it is."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from loaders.checkpoint.read_spec import read_spec
from loaders.text_part import used_names
from scheduler.plan.plan import Tier
from tests.samples.multimodal.checkpoints import checkpoint, greedy, perturbed
from tests.samples.quantized.packed_models import AWQ, INTEGERS, compressed_config, fp8_config, gptq_config
from tests.samples.quantized.packed_samples import Packed, awq, fp8, gptq, is_linear, rewrite, words
from tests.samples.tiny_models import PROMPT, streaming_runtime

NEW_TOKENS = 24
TREE = {"context_length": 96, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
IGNORED = {"ignore": ["lm_head", "re:.*visual.*", "re:.*vision_tower.*", "re:.*projector.*"]}
BLOCKS = partial(fp8, block=(16, 16), dtype=torch.float32, name="weight_scale_inv")
CASES: dict[str, tuple[str, Callable[..., Packed], dict[str, Any]]] = {
    "awq": ("qwen2_5_vl", awq, {**AWQ, "modules_to_not_convert": ["visual"]}),
    "gptq": ("qwen2_vl", gptq, gptq_config()),
    "int4": ("gemma3", words, {**compressed_config("pack-quantized", **INTEGERS), **IGNORED}),
    "FP8": ("qwen3_vl", BLOCKS, {**fp8_config(16, 16), "modules_to_not_convert": ["model.visual", "lm_head"]}),
    "FP8 of Mistral 3": ("mistral3", BLOCKS, fp8_config(16, 16)),
    "int4 experts": (
        "kimi_k25",
        partial(words, group=16),
        {**compressed_config("pack-quantized", **{**INTEGERS, "group_size": 16}), **IGNORED},
    ),
}


def packed(case: str, directory: Path) -> Path:
    family, pack, config = CASES[case]
    source = checkpoint(family)
    is_text = used_names(source)
    is_packed = (lambda name: ".experts." in name) if family == "kimi_k25" else is_linear
    return rewrite(source, directory / "packed", lambda name: is_text(name) and is_packed(name), pack, config)


@pytest.mark.parametrize("case", CASES)
def test_streamed_text_is_that_of_the_decoded_weights(case, tmp_path):
    directory = packed(case, tmp_path)
    expected = greedy(directory / "decoded", PROMPT, NEW_TOKENS)
    assert expected != greedy(checkpoint(CASES[case][0]), PROMPT, NEW_TOKENS), "packing must make a difference"
    with streaming_runtime(directory, perturbed(directory / "decoded", 0.02), **TREE) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK} and read_spec(directory).is_packed
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == expected and reply.stats.tokens_per_pass > 1.5


def test_the_nested_config_may_say_how_weights_are_packed(tmp_path):
    """As in that of Kimi K2.5."""
    directory = packed("int4 experts", tmp_path)
    spec, file = read_spec(directory), directory / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    file.write_text(json.dumps(config))
    assert read_spec(directory) == spec and spec.stored_dtype == "compressed-tensors int4"
