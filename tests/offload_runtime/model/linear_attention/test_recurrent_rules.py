"""The closed forms of recurrent rules over trees: every node is as if its path ran alone, token by token."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offload_runtime.model.linear_attention import channel_delta_rule, decayed_sums, delta_rule
from offload_runtime.model.linear_attention.writes import Writes

HEADS, GROUPS, KEY, VALUE = 6, 3, 5, 4
MOST_NODES = 40

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""From a state ``[heads, k, v]`` and the inputs of one token: the state after it, and its output ``[heads, v]``."""


def random_tree(generator: torch.Generator) -> Tensor:
    """bool [n, n]: each node and its ancestors."""
    count = int(torch.randint(1, MOST_NODES, (1,), generator=generator))
    visible = torch.eye(count, dtype=torch.bool)
    for node in range(1, count):
        visible[node] |= visible[int(torch.randint(0, node, (1,), generator=generator))]
    return visible


def read(state: Tensor, query: Tensor) -> Tensor:
    return torch.einsum("hkv,hk->hv", state, query)


def delta_step(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    query, key, value, decay, beta = inputs
    state = state * decay.reshape(HEADS, -1, 1).exp()  # one for all, or one for each channel of the keys
    delta = beta[:, None] * (value - read(state, key))
    state = state + key[:, :, None] * delta[:, None]
    return state, read(state, query)


def sums_step(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    query, key, value, decay = inputs
    query, key = (tensor.repeat_interleave(HEADS // GROUPS, 0) for tensor in (query, key))
    state = state * decay[:, None, None].exp() + key[:, :, None] * value[:, None]
    return state, read(state, query)


def delta_inputs(count: int, random: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    key = random(HEADS, count, KEY)
    key = key / key.norm(dim=-1, keepdim=True)
    decay, beta = -random(HEADS, count).abs(), random(HEADS, count).sigmoid()
    return random(HEADS, count, KEY), key, random(HEADS, count, VALUE), decay, beta


def channel_inputs(count: int, random: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    query, key, value, _, beta = delta_inputs(count, random)
    return query, key, value, -random(HEADS, count, KEY).abs(), beta


def sums_inputs(count: int, random: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    query, key = random(GROUPS, count, KEY), random(GROUPS, count, KEY)
    return query, key, random(HEADS, count, VALUE), -random(HEADS, count).abs()


RULES: dict[str, tuple[Callable[..., tuple[Tensor, Writes]], Callable[..., tuple[Tensor, ...]], Step]] = {
    "channel delta rule": (channel_delta_rule.over_tree, channel_inputs, delta_step),
    "delta rule": (delta_rule.over_tree, delta_inputs, delta_step),
    "decayed sums": (decayed_sums.over_tree, sums_inputs, sums_step),
}


def worst_difference(rule: str, seed: int, passes: int) -> float:
    """Between a random tree and its paths alone: of outputs, and of the states after every node, in float64.

    passes: the second sees the nodes of the first.
    """
    over_tree, inputs_of, step = RULES[rule]
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=torch.float64, generator=generator)

    visible = random_tree(generator)
    n, state = len(visible), random(HEADS, KEY, VALUE)
    inputs, outputs, writes = inputs_of(n, random), [], None
    ends = [n] if passes == 1 or n == 1 else [n // 2, n]
    for begin, end in zip([0, *ends], ends):
        parts = (tensor[:, begin:end] for tensor in inputs)
        output, writes = over_tree(*parts, state, visible[begin:end, :end], writes)
        outputs.append(output)
    assert writes is not None
    worst, output = 0.0, torch.cat(outputs, 1)
    for node in range(n):
        path, memory, expected = visible[node].nonzero()[:, 0], state, output[:, node]
        for token in path.tolist():
            memory, expected = step(memory, tuple(tensor[:, token] for tensor in inputs))
        worst = max(worst, float((output[:, node] - expected).abs().max()))
        worst = max(worst, float((writes.state_after(state, path) - memory).abs().max()))
    return worst


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_every_node_is_as_if_its_path_ran_alone(rule: str, passes: int) -> None:
    assert max(worst_difference(rule, seed, passes) for seed in range(60)) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_strong_decays_give_numbers(rule: str) -> None:
    """Totals far below what the exponential function of float64 takes."""
    over_tree, inputs_of, _ = RULES[rule]
    inputs = inputs_of(20, lambda *sizes: 400 * torch.rand(*sizes) - 200)
    visible = torch.ones(20, 20, dtype=torch.bool).tril()
    output, writes = over_tree(*inputs, torch.ones(HEADS, KEY, VALUE), visible)
    assert output.isfinite().all()
    assert writes.state_after(torch.ones(HEADS, KEY, VALUE), torch.arange(20)).isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_a_tree_that_is_taken_for_a_chain_is_found(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: every node sees all before it."""
    over_tree, inputs_of, step = RULES[rule]

    def chain(*inputs):
        *inputs, visible, earlier = inputs
        return over_tree(*inputs, torch.ones_like(visible).tril(visible.shape[1] - visible.shape[0]), earlier)

    monkeypatch.setitem(RULES, rule, (chain, inputs_of, step))
    assert worst_difference(rule, seed=3, passes=1) > 0.1
