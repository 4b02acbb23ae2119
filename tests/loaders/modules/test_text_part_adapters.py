"""LoRA adapters of multimodal models: what they change of the text part is merged, the rest is not read."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loaders.errors import UnsupportedModelError
from offload_runtime import OffloadRuntime
from tests.samples.adapter_samples import PREFIX, write_adapter
from tests.samples.multimodal.checkpoints import checkpoint, greedy
from tests.samples.tiny_models import PROMPT, streaming_runtime

NEW_TOKENS = 12
# By family: the beginning of names on disk, and in the module tree, which adapters are named by.
NAMES = {
    "gemma3": ("language_model.model.", "model.language_model."),
    "qwen2_5_vl": ("model.", "model.language_model."),
    "qwen3_vl": ("model.language_model.", "model.language_model."),
}


def rename(adapter: Path, begins: str, becomes: str) -> None:
    """Give modules other names, as PEFT writes them."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    assert any(name.startswith(PREFIX + begins) for name in tensors)
    save_file({name.replace(PREFIX + begins, PREFIX + becomes, 1): tensor for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("by_module", [True, False])
def test_the_text_is_that_of_the_merged_model(family, by_module):
    """What sees is changed, too, which no text passes through."""
    source = checkpoint(family)
    adapter, merged = write_adapter(source, ("self_attn.q_proj", "self_attn.v_proj", "attn.qkv", "mlp.fc1"))
    expected = greedy(merged, PROMPT, NEW_TOKENS)
    assert expected != greedy(source, PROMPT, NEW_TOKENS)
    if by_module:
        rename(adapter, *NAMES[family])
    with streaming_runtime(source, adapter=adapter, context_length=64) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected


def test_an_adapter_of_the_vision_tower_alone_is_refused():
    source = checkpoint("qwen3_vl")
    adapter, _ = write_adapter(source, ("attn.qkv",))
    assert all("visual" in name for name in load_file(adapter / "adapter_model.safetensors"))
    with pytest.raises(UnsupportedModelError, match="changes only how the model sees or hears"):
        OffloadRuntime.from_pretrained(source, "none", device="cpu", adapter=adapter)


def test_a_module_that_the_text_part_lacks_is_refused():
    source = checkpoint("qwen3_vl")
    adapter, _ = write_adapter(source, ("self_attn.q_proj",))
    rename(adapter, "model.language_model.layers.0.", "model.language_model.layers.9.")
    with pytest.raises(UnsupportedModelError, match=r"layers\.9\."):
        OffloadRuntime.from_pretrained(source, "none", device="cpu", adapter=adapter)
