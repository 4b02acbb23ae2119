"""Times a tree of 64 nodes over a recurrent layer beside transformers' own function over 64 tokens of text.

    python scripts/time_recurrent_trees.py --kind mamba-2

Float32, random inputs of the sizes of published models, one layer, both in the same run and one after the other.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from offload_runtime.model.linear_attention import channel_delta_rule, decayed_sums, delta_rule
from sequoia_tree.tree import Tree

NODES = 64
HEADS, WIDTH = 32, 128  # of the delta rules: Qwen3-Next, Kimi Linear
MAMBA_HEADS, GROUPS, VALUE, KEY, CHUNK = 128, 8, 64, 128, 64  # Nemotron-H; its chunk, 256, would be padding mostly

Pair = tuple[Callable[[], object], Callable[[], object]]
"""A run over the tree, and one over as much text."""


def main(arguments: list[str] | None = None) -> None:
    """Print the median and the least seconds of both, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args(arguments)
    for kind in KINDS if options.kind == "all" else [options.kind]:
        tree, chain = (seconds(run, options.runs) for run in KINDS[kind](torch.Generator().manual_seed(0)))
        print(
            f"{kind}: tree {median(tree) * 1e3:.1f} ms (least {min(tree) * 1e3:.1f}), "
            f"text {median(chain) * 1e3:.1f} ms (least {min(chain) * 1e3:.1f}), "
            f"ratio {median(tree) / median(chain):.2f}"
        )


def seconds(run: Callable[[], object], runs: int) -> list[float]:
    """Of every run after one to warm up."""
    taken = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return taken[1:]


def random_tree() -> Tensor:
    """bool [n, n]: each node and its ancestors; any earlier node may be a parent."""
    random = np.random.default_rng(0)
    tree = Tree([-1, *(int(random.integers(node)) for node in range(1, NODES))])
    return torch.from_numpy(tree.ancestor_mask())


def delta_rules(generator: torch.Generator, by_channel: bool) -> Pair:
    """The gated delta rule, with a decay for each head or for each channel of its keys."""

    def random(*shape: int) -> Tensor:
        return torch.randn(1, NODES, HEADS, *shape, generator=generator)

    query, key, value = random(WIDTH), functional.normalize(random(WIDTH), dim=-1), random(WIDTH)
    decay, beta = -0.1 * (random(WIDTH) if by_channel else random()).abs(), random().sigmoid()
    state, visible = torch.randn(1, HEADS, WIDTH, WIDTH, generator=generator), random_tree()
    nodes = [tensor[0].transpose(0, 1) for tensor in (query, key, value, decay, beta)]
    over_tree: Callable[..., object] = channel_delta_rule.over_tree if by_channel else delta_rule.over_tree
    over_text: Callable[..., object] = chunk_kimi_delta_attention if by_channel else torch_chunk_gated_delta_rule
    how = {"initial_state": state, "output_final_state": True}
    return (
        lambda: over_tree(*nodes, state[0], visible),
        lambda: over_text(query, key, value, g=decay, beta=beta, **how),
    )


def mamba_2(generator: torch.Generator) -> Pair:
    """The state space, with all that its function does: time steps, and the inputs beside."""

    def random(*shape: int) -> Tensor:
        return torch.randn(1, NODES, *shape, generator=generator)

    x, dt, B, C = random(MAMBA_HEADS, VALUE), random(MAMBA_HEADS), random(GROUPS, KEY), random(GROUPS, KEY)
    rates, D = -torch.rand(MAMBA_HEADS, generator=generator), torch.ones(MAMBA_HEADS)
    state, visible = torch.randn(MAMBA_HEADS, KEY, VALUE, generator=generator), random_tree()

    def over_tree() -> object:
        step = functional.softplus(dt[0]).T
        values, key, query = (tensor[0].transpose(0, 1) for tensor in (x, B, C))
        added = values * step[..., None]
        out, writes = decayed_sums.over_tree(query, key, added, rates[:, None] * step, state, visible)
        return out + D[:, None, None] * values, writes

    how = {"D": D, "dt_softplus": True, "initial_states": state.transpose(1, 2)[None], "return_final_states": True}
    return over_tree, lambda: mamba2_chunk_scan(x, dt, rates, B, C, chunk_size=CHUNK, **how)


KINDS: dict[str, Callable[[torch.Generator], Pair]] = {
    "delta-rule": lambda generator: delta_rules(generator, by_channel=False),
    "kimi": lambda generator: delta_rules(generator, by_channel=True),
    "mamba-2": mamba_2,
}

if __name__ == "__main__":
    main()
