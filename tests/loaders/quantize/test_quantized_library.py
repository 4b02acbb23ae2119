"""Other software reads what was packed here: compressed-tensors by itself, and transformers with it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from loaders.checkpoint.read_spec import read_config
from tests.loaders.quantize.test_quantized_checkpoint import CASES
from tests.samples.quantized.quantized_models import (
    decoded_copy,
    decoded_weight,
    packed_model,
    packed_weights,
    stored_tensors,
)
from tests.samples.tiny_models import PROMPT, greedy

pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors, which no other test needs")


@pytest.mark.parametrize(("architecture", "name", "changes"), CASES)
def test_transformers_writes_the_same_text(architecture, name, changes, tmp_path):
    """And finds, where it keeps matrices apart, bit for bit the same weights."""
    packed = packed_model(architecture, name, **changes)
    model = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPT])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert found[0, len(PROMPT) :].tolist() == greedy(decoded_copy(packed, tmp_path / "decoded"), PROMPT, 12)
    state, tensors, seen = model.state_dict(), stored_tensors(packed), 0
    for weight_name, weight in packed_weights(packed).items():
        if weight_name in state:
            assert torch.equal(state[weight_name], decoded_weight(weight, tensors))
            seen += 1
    assert seen >= 4 * model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_the_library_decompresses_each_weight_to_the_same_bits(name):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    packed = packed_model("qwen3_moe", name)
    config = QuantizationConfig.model_validate(read_config(packed)["quantization_config"])
    [scheme] = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors = stored_tensors(packed)
    for weight_name, weight in packed_weights(packed).items():
        state = {
            leaf: tensors[f"{weight_name}_{leaf[7:]}"] for leaf in ("weight_packed", "weight_scale", "weight_shape")
        }
        assert torch.equal(compressor.decompress(state, scheme)["weight"], decoded_weight(weight, tensors))
