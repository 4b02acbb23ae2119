"""transformers' own class of a multimodal model, without the modules that only images and sound pass through."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from loaders.text_part import NOT_READ, layers_for_images

# The class of the whole model asks its vision encoder about every token, and needs a package of its own to build it.
OF_TEXT_ALONE = {"gemma3n"}


def has_text_part(config: PretrainedConfig) -> bool:
    """Whether this is a multimodal model whose text part runs alone."""
    return config.model_type in NOT_READ and type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING


def text_part(config: PretrainedConfig, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """Build the model on the current device and take out what is neither its text model nor its head.

    With token ids alone, its forward runs those two. What is left around them holds no tensors.
    """
    if config.model_type in OF_TEXT_ALONE:
        text: PreTrainedModel = AutoModelForCausalLM.from_config(
            config.get_text_config(decoder=True), dtype=dtype, attn_implementation=attn_implementation
        )
        return text
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(
        config,
        dtype=dtype,
        attn_implementation={"": attn_implementation, "text_config": attn_implementation},
        trust_remote_code=False,
    )
    decoder = model.get_decoder()
    _take_out(model, {decoder, model.get_output_embeddings()})
    for number in layers_for_images(config.to_dict()):
        decoder.layers._modules[str(number)] = None  # its forward leaves them out, too
    return model


def _take_out(module: nn.Module, kept: set[nn.Module]) -> None:
    """Take out a module's own parameters, and its children with tensors, but those that are `kept` or hold one."""
    for name, child in module.named_children():
        if child in kept or not [*child.parameters(), *child.buffers()]:
            continue
        if kept.isdisjoint(child.modules()):
            module._modules[name] = None  # its forward may ask whether it is there
        else:
            _take_out(child, kept)
    module._parameters.update(dict.fromkeys(module._parameters))
    module._is_hf_initialized = True  # type: ignore[assignment]  # transformers would initialize those parameters
