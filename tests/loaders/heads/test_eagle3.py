"""An EAGLE-3 head computes what the paper describes, written out here token by token."""

from typing import Any

import pytest
import torch
from torch import Tensor

from loaders.heads.eagle3 import Eagle3Head, build_eagle3
from loaders.heads.eagle3_config import read_eagle3
from tests.samples.head_samples import TARGET, eagle3_config, randomize

ROWS = 9


def norm(values: Tensor, weight: Tensor) -> Tensor:
    return values * (values.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def rotated(values: Tensor, position: int) -> Tensor:
    """[heads, 8] at a position."""
    angles = position * 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)
    return values * cos + torch.cat((-values[..., 4:], values[..., :4]), dim=-1) * sin


class Reference:
    """One layer, one row at a time; keys and values are kept by row."""

    def __init__(self, head: Eagle3Head, flags: dict[str, Any]):
        self.weights, self.flags = head.state_dict(), flags
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def fuse(self, states: Tensor) -> Tensor:
        if self.flags.get("norm_before_fc"):
            states = norm(states, self.weights["input_norm.weight"])
        if self.flags.get("fc_norm"):
            parts = states.split(32)
            states = torch.cat([norm(part, self.weights[f"fc_norm.{i}.weight"]) for i, part in enumerate(parts)])
        return self.weights["fc.weight"] @ states

    def row(self, embedded: Tensor, features: Tensor, position: int, seen: list[int]) -> tuple[Tensor, Tensor]:
        """Logits, and the features for the next row. seen: rows that this one attends to beside itself."""
        layer = {name.removeprefix("layers.0."): one for name, one in self.weights.items() if "layers.0." in name}
        hidden = norm(features, layer["hidden_norm.weight"])
        residual = hidden if self.flags.get("norm_before_residual") else features
        joined = torch.cat((norm(embedded, layer["input_layernorm.weight"]), hidden))
        query, key, value = ((layer[f"self_attn.{name}_proj.weight"] @ joined).view(-1, 8) for name in ("q", "k", "v"))
        if "self_attn.q_norm.weight" in layer:
            query, key = norm(query, layer["self_attn.q_norm.weight"]), norm(key, layer["self_attn.k_norm.weight"])
        query = rotated(query, position)
        self.keys.append(rotated(key, position))
        self.values.append(value)
        rows = [*seen, len(self.keys) - 1]
        keys, values = torch.stack([self.keys[i] for i in rows]), torch.stack([self.values[i] for i in rows])
        out = [(keys[:, i // 2] @ query[i] / 8**0.5).softmax(0) @ values[:, i // 2] for i in range(4)]
        hidden = residual + layer["self_attn.o_proj.weight"] @ torch.cat(out)
        inner = norm(hidden, layer["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(layer["mlp.gate_proj.weight"] @ inner)
        hidden = hidden + layer["mlp.down_proj.weight"] @ (gate * (layer["mlp.up_proj.weight"] @ inner))
        normed = norm(hidden, self.weights["norm.weight"])
        return self.weights["lm_head.weight"] @ normed, normed if self.flags.get("norm_output") else hidden


def built(flags: dict[str, Any]) -> Eagle3Head:
    config = read_eagle3(TARGET_FILE, eagle3_config("speculators", **flags), TARGET)
    head = build_eagle3(config, torch.float32, "sdpa", own_embeddings=True).eval()
    randomize(head)
    return head


TARGET_FILE = __import__("pathlib").Path("config.json")
FLAGS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True},
    {"norm_before_fc": True},
    {"fc_norm": True, "norm_output": True},
    {"model_type": "qwen3"},
]


@torch.no_grad()
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_equals_the_paper_row_by_row(flags: dict[str, Any]) -> None:
    head, states = built(flags), torch.randn(ROWS, 96, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(ROWS) * 7 % 96
    reference = Reference(head, flags)
    features = head.fuse(states)
    wanted = torch.stack([reference.fuse(one) for one in states])
    torch.testing.assert_close(features, wanted)
    out = head(tokens[None], torch.arange(ROWS)[None], features=features[None])
    rows = [reference.row(head.embed(tokens[i]), wanted[i], i, list(range(i))) for i in range(ROWS)]
    torch.testing.assert_close(out.logits[0], torch.stack([logits for logits, _ in rows]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out.features[0], torch.stack([below for _, below in rows]), atol=2e-5, rtol=1e-4)
    shifted = head(tokens[None], torch.arange(ROWS)[None], features=features.roll(1, 0)[None])
    assert (shifted.logits - out.logits).abs().max() > 0.1, "features of another row are noticed"


@torch.no_grad()
def test_tokens_that_it_cannot_propose_have_no_probability() -> None:
    config = read_eagle3(TARGET_FILE, eagle3_config(draft_vocab_size=4), TARGET)
    head = build_eagle3(config, torch.float32, "sdpa")
    head.token_ids = torch.tensor([2, 30, 31, 95])
    logits = head.as_target_tokens(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert logits.shape == (1, 96) and logits[0, [2, 30, 31, 95]].tolist() == [1, 2, 3, 4]
    assert logits.isfinite().sum() == 4
