"""A block draft computes what the papers describe, written out here without a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loaders.heads.dflash import DflashHead, _predicate
from tests.samples.head_readings import Rows
from tests.samples.head_samples import write_dflash

TEXT = 11


def norm(values: Tensor, weight: Tensor) -> Tensor:
    return values * (values.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def rotated(values: Tensor, positions: Tensor) -> Tensor:
    """[n, heads, 8]."""
    angles = positions[:, None] * 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
    return values * cos + torch.cat((-values[..., 4:], values[..., :4]), dim=-1) * sin


def convolved(rows: Tensor, kernels: Tensor, base: Tensor) -> Tensor:
    """rows [n, 32]; kernels [n, 2 taps, 4 groups]; base [2, 32]: the row itself and the one before."""
    out = rows * (base[0] + kernels[:, 0].repeat_interleave(8, -1))
    out[1:] += rows[:-1] * (base[1] + kernels[1:, 1].repeat_interleave(8, -1))
    return out


def reference(head: DflashHead, table: Tensor, states: Tensor, anchor: int) -> Tensor:
    """The states of the block's places after the anchor, [4, 32]."""
    weights, config = head.state_dict(), head.head
    context = norm(states @ weights["fc.weight"].T, weights["hidden_norm.weight"])
    hidden = table[torch.tensor([anchor, *[95] * 4])]
    positions, block = torch.arange(TEXT + 5), torch.arange(TEXT, TEXT + 5)
    for number in range(2):
        layer = {
            name.removeprefix(f"layers.{number}."): one for name, one in weights.items() if f"layers.{number}." in name
        }

        def around(name: str, rows: Tensor, sublayer: Any, layer: dict[str, Tensor] = layer) -> Tensor:
            if config.second is None:
                return sublayer(rows)
            kernels = (rows @ layer[f"{name}.kernel_projection.weight"].T).view(5, 2, 2, 4)
            base = layer[f"{name}.base_kernel"]
            return convolved(sublayer(convolved(rows, kernels[:, 0], base[0])), kernels[:, 1], base[1])

        def attend(rows: Tensor, layer: dict[str, Tensor] = layer, number: int = number) -> Tensor:
            both = torch.cat((context, rows))
            query = norm((rows @ layer["self_attn.q_proj.weight"].T).view(5, 4, 8), layer["self_attn.q_norm.weight"])
            key = norm((both @ layer["self_attn.k_proj.weight"].T).view(-1, 2, 8), layer["self_attn.k_norm.weight"])
            value = (both @ layer["self_attn.v_proj.weight"].T).view(-1, 2, 8)
            query, key = rotated(query, block), rotated(key, positions)
            out = []
            for row in range(5):
                distance = positions - block[row]
                seen = distance <= 0 if config.causal[number] else torch.ones(TEXT + 5, dtype=torch.bool)
                if config.windows[number] is not None:
                    seen &= distance.abs() < config.windows[number]
                heads = [
                    (key[seen, i // 2] @ query[row, i] / 8**0.5).softmax(0) @ value[seen, i // 2] for i in range(4)
                ]
                out.append(torch.cat(heads))
            return torch.stack(out) @ layer["self_attn.o_proj.weight"].T

        def feed(rows: Tensor, layer: dict[str, Tensor] = layer) -> Tensor:
            gate = nn.functional.silu(rows @ layer["mlp.gate_proj.weight"].T)
            return (gate * (rows @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T

        hidden = hidden + around("attention_conv", norm(hidden, layer["input_layernorm.weight"]), attend)
        hidden = hidden + around("mlp_conv", norm(hidden, layer["post_attention_layernorm.weight"]), feed)
    return norm(hidden, weights["norm.weight"])[1:]


@torch.no_grad()
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{}, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}, {"is_causal": True}],
    ids=str,
)
def test_equals_the_papers(fields: dict[str, Any], second: bool, tmp_path: Any) -> None:
    head = write_dflash(tmp_path, second=second, **fields)
    table, output = nn.Embedding(96, 32), nn.Linear(32, 96, bias=False)
    head.share(table, output)
    states = torch.randn(TEXT, 64, generator=torch.Generator().manual_seed(2))
    cache = Rows()
    head.absorb(states[:7], torch.arange(7), cache)
    head.absorb(states[7:], torch.arange(7, TEXT), cache)
    block = torch.tensor([[12, 95, 95, 95, 95]]), torch.arange(TEXT, TEXT + 5)[None]
    logits = head(*block, past_key_values=cache).logits[0]
    assert head.states is not None
    got = head.states[1:]
    torch.testing.assert_close(got, reference(head, table.weight, states, 12), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1:], output(got))
    assert (got - reference(head, table.weight, states, 13)).abs().max() > 0.05, "another anchor is noticed"


@torch.no_grad()
def test_successors_depend_on_the_token_before(tmp_path: Any) -> None:
    head = write_dflash(tmp_path, second=True)
    assert head.candidate_selector is not None
    logits, states, places = torch.randn(4, 96), torch.randn(4, 32), torch.tensor([1, 1, 3])
    after = head.successors(logits, states, places, torch.tensor([5, 60, 5]))
    weights = head.candidate_selector.state_dict()
    for row, (place, before) in enumerate(((1, 5), (1, 60), (3, 5))):
        unary, candidates = logits[place].topk(7)
        projected = weights["hidden_projection.weight"] @ states[place]
        context = weights["predecessor_codebook.weight"][before] * projected
        wanted = unary + weights["successor_codebook.weight"][candidates] @ context
        torch.testing.assert_close(after[row, candidates], wanted)
    assert after.isfinite().sum() == 21 and not torch.equal(after[0], after[1])
    first = write_dflash(tmp_path / "first")
    assert torch.equal(first.successors(logits, states, places, torch.tensor([5, 60, 5])), logits[places])


def test_what_a_place_may_see() -> None:
    rows, columns = torch.arange(4, 7), torch.arange(7)

    def may_see(rows: Tensor, columns: Tensor, *kind: Any) -> Tensor:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        return _predicate(*kind)(zero, zero, rows[:, None], columns[None])

    assert may_see(rows, columns, None, False).all()
    assert may_see(rows, columns, None, True).tolist() == [[c <= r for c in range(7)] for r in range(4, 7)]
    assert may_see(rows, columns, 2, False).tolist() == [[abs(c - r) < 2 for c in range(7)] for r in range(4, 7)]
