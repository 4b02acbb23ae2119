"""A tiny model that writes what it is told to: the next token is a function of the last one."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def save_chain(directory: Path, chain: list[int], vocabulary: int) -> None:
    """Save a model whose greedy text after the first of `chain`, ids that are all different, is the others."""
    sizes = {"hidden_size": vocabulary + vocabulary % 2, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, **sizes, **heads, tie_word_embeddings=False, eos_token_id=2, bos_token_id=1
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0 if weight.dim() == 1 else 0.0)
        model.get_input_embeddings().weight.fill_diagonal_(1.0)
        model.lm_head.weight[chain[1:], chain[:-1]] = 1.0
    model.save_pretrained(directory)
