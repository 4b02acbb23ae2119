"""Generation configs, and what transformers' own logits processors make of them."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from offload_runtime.generation.defaults import read_generation_defaults
from offload_runtime.generation.request_rules import RequestRules
from sequoia_tree.shaping.order import Bounds
from sequoia_tree.shaping.settings import Sampling

# Of a decoder that does nothing: only the choice of its processors is asked for.
_MODEL = LlamaForCausalLM(
    LlamaConfig(vocab_size=4, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
)


def processors(fields: Mapping[str, Any], prompt: Sequence[int], ends: Sequence[int], most_tokens: int) -> Any:
    """What `generate` would build for a generation config; called with ids [1, L] and scores [1, V]."""
    # An unset top_k is 50 in `generate` and off here.
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **fields})
    config._eos_token_tensor = torch.tensor(ends) if ends else None
    config.max_length = most_tokens
    if config.min_new_tokens is not None:
        config.min_length = len(prompt) + config.min_new_tokens
    ids = torch.tensor([list(prompt)])
    attention = {"attention_mask": torch.ones_like(ids)}
    return _MODEL._get_logits_processor(
        config, len(prompt), encoder_input_ids=ids, device="cpu", model_kwargs=attention
    )


def scores_by_transformers(
    fields: Mapping[str, Any], bounds: Bounds, contexts: Sequence[Sequence[int]], logits: Tensor
):
    """The processed logits [n, V] after each of n contexts."""
    built = processors(fields, bounds.prompt, sorted(bounds.end_tokens), bounds.most_tokens)
    return torch.cat([built(torch.tensor([list(ids)]), row[None].clone()) for ids, row in zip(contexts, logits)])


def sampling_of(fields: Mapping[str, Any], bounds: Bounds) -> Sampling:
    """The same through our reading of the file."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "generation_config.json").write_text(json.dumps({"do_sample": True, **fields}))
        defaults = read_generation_defaults(Path(directory))
    return RequestRules(defaults.token_rules).bind(defaults.sampling, bounds, None, None, None)
