"""At low temperatures no token comes out that the target all but excludes, whatever the draft was certain of.

The models are tables of logits by the last token, so that the distribution of every token of a text is known.
"""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from offload_runtime import OffloadRuntime

VOCABULARY, TEMPERATURE = 24, 0.05
TEXTS, LENGTH = 5, 100
IMPOSSIBLE = 1e-12
TREES = {
    "chain": ("chain", "auto"),
    "sequoia": ("sequoia", "top-down"),
    "sequoia by traversal": ("sequoia", "traversal"),
    "sequoia by match": ("sequoia", "match"),
    "specinfer": ("specinfer", "auto"),
    "adaptive": ("adaptive", "traversal"),
    "adaptive by ratio tests": ("adaptive", "top-down"),
}


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits by the last token. The draft agrees in half of the contexts. In the others it is certain of a wrong token
    and shares the rest, 1e-26 of its distribution, between the target's token and another.
    """
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    best = torch.randperm(VOCABULARY, generator=generator)
    rows = torch.arange(VOCABULARY)
    target[rows, best] = target.amax(-1) + 1.5
    draft = target.clone()
    draft[::2] = -2.0
    for distance, logit in enumerate((0.0, 3.0, -0.045)):
        draft[rows[::2], (best[::2] + distance) % VOCABULARY] = logit
    return target, draft


def write(table: torch.Tensor, directory: Path) -> Path:
    """A model whose logits are the row of the table that the last token names: its one layer adds nothing."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        model.lm_head.weight.copy_(table.T / VOCABULARY**0.5)  # what the norm makes of a single 1
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tables")
    target, draft = (write(table, directory / name) for table, name in zip(tables(), ("target", "draft")))
    (draft / "acceptance.json").write_text(json.dumps({"positional": [0.4, 0.2, 0.1, 0.1]}))
    return target, draft


@pytest.mark.parametrize("tree", TREES)
def test_no_impossible_token_comes_out(tree, pair):
    kind, verification = TREES[tree]
    distribution = (tables()[0] / TEMPERATURE).double().softmax(-1)
    options = {"device": "cpu", "dtype": "float32", "tree": kind, "verification": verification, "tree_size": 12}
    with OffloadRuntime.from_pretrained(*pair, **options, tree_depth=4, context_length=LENGTH + 8) as runtime:
        texts = [
            [0, *runtime.generate([0], max_new_tokens=LENGTH, temperature=TEMPERATURE, seed=seed).token_ids]
            for seed in range(TEXTS)
        ]
    pairs = torch.tensor([pair for text in texts for pair in pairwise(text)])
    assert len(pairs) == TEXTS * LENGTH
    impossible = (distribution[pairs[:, 0], pairs[:, 1]] < IMPOSSIBLE).sum()
    assert impossible == 0, f"{impossible} of {len(pairs)} tokens are impossible"
