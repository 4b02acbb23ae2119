"""Recurrent layers that branch: each node of a tree follows its own path, and texts go back to earlier states."""

from itertools import cycle, product

import pytest
import torch

from loaders.checkpoint import recurrent
from loaders.checkpoint.read_spec import read_spec
from loaders.errors import UnsupportedModelError
from offload_runtime import OffloadRuntime
from offload_runtime.model.linear_attention.states import Branches, BranchingLayer
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.samples.architectures import BRANCHING
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

TREE = {"context_length": 160, "tree": "sequoia", "tree_size": 8, "tree_depth": 4}
CHUNK = 64  # of the chunked form in transformers
LONG = [(7 * i * i) % 90 + 5 for i in range(CHUNK + 2)]
# One of each rule takes every length, the others one of them.
LENGTHS = (CHUNK - 1, CHUNK, CHUNK + 2)
OF_EACH_RULE = ("qwen3_next", "kimi_linear", "falcon_h1", "lfm2", "minimax")
AROUND_THE_EDGE = [
    *product(OF_EACH_RULE, LENGTHS),
    *zip(sorted(BRANCHING.keys() - {*OF_EACH_RULE}), cycle(LENGTHS)),
]


@pytest.mark.parametrize(("architecture", "length"), AROUND_THE_EDGE)
def test_long_texts_around_the_edge_of_a_chunk(architecture: str, length: int) -> None:
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        reply = runtime.generate(LONG[:length], max_new_tokens=72, temperature=0)
    assert reply.token_ids == greedy(target, LONG[:length], 72) and reply.stats.tokens_per_pass > 1.1


@pytest.mark.parametrize(
    ("architecture", "tree"),
    [*(("qwen3_next", tree) for tree in ("sequoia", "adaptive", "none")), ("falcon_h1", "sequoia"), ("lfm2", "none")],
)
def test_going_back_reads_from_the_last_state_that_was_kept(architecture: str, tree: str) -> None:
    """The same prompt again, a longer one after its reply, one that leaves it early, and the first once more."""
    target = checkpoint(architecture)
    options = {**TREE, "tree": tree, "device": "cpu"}
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **options) as runtime:
        first = runtime.generate(LONG, max_new_tokens=12, temperature=0)
        again = runtime.generate(LONG, max_new_tokens=12, temperature=0)
        longer = [*LONG, *first.token_ids, 7, 8, 9]
        prompts = [longer, [*LONG[:30], 4, 4], LONG]
        replies = [runtime.generate(prompt, max_new_tokens=12, temperature=0) for prompt in prompts]
    assert first.token_ids == again.token_ids == greedy(target, LONG, 12)
    assert again.stats.prompt_tokens_read == 1, "the state at the end of the prompt was kept"
    assert replies[0].stats.prompt_tokens_read <= 4, "and that at the end of the reply"
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == greedy(target, prompt, 12)


@pytest.mark.parametrize("architecture", ["qwen3_next", "falcon_h1", "kimi_linear", "mamba2", "minimax"])
def test_texts_that_share_passes_keep_states_apart(architecture: str) -> None:
    target, prompts = checkpoint(architecture), [[*LONG[:50], 3 + number] for number in range(5)]
    with streaming_runtime(target, perturbed(target, 0.02), parallel=3, **TREE) as runtime:
        for _ in range(2):
            replies = runtime.generate_many(prompts, max_new_tokens=10, temperature=0)
            assert [reply.token_ids for reply in replies] == [greedy(target, prompt, 10) for prompt in prompts]


def test_a_draft_may_be_recurrent_and_the_target_not() -> None:
    target, draft = checkpoint("llama"), checkpoint("qwen3_5_text")
    with OffloadRuntime.from_pretrained(target, draft, device="cpu", **TREE) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=16, temperature=0).token_ids == greedy(target, PROMPT, 16)


def see_siblings(branches: Branches, kernel: int) -> torch.Tensor:
    nodes = torch.arange(len(branches.parents) - branches.count, len(branches.parents))
    return torch.stack([nodes - back for back in range(kernel - 1, -1, -1)], dim=1)


def keep_the_text_alone(layer, number: int, path: torch.Tensor | None) -> None:
    pending, layer.pending[number] = layer.pending[number], None
    layer.states[number] = pending.after_text


def keep_the_state(writes, state: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    return state


@pytest.mark.parametrize(
    ("place", "mistake"),
    [
        ("states.Branches.windows", see_siblings),
        ("states.BranchingLayer.commit", keep_the_text_alone),
        ("writes.Writes.state_after", keep_the_state),
        ("channel_delta_rule.ChannelWrites.state_after", keep_the_state),
    ],
)
@pytest.mark.parametrize("architecture", ["qwen3_next", "nemotron_h", "falcon_h1", "kimi_linear", "lfm2", "minimax"])
def test_mistakes_are_found(architecture: str, place: str, mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake is keep_the_state and (
        architecture == "lfm2" or (architecture == "kimi_linear") != ("Channel" in place)
    ):
        pytest.skip("writes otherwise")
    if mistake is see_siblings and architecture == "minimax":
        pytest.skip("no convolutions")
    monkeypatch.setattr(f"offload_runtime.model.linear_attention.{place}", mistake)
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=24, temperature=0).token_ids != greedy(target, PROMPT, 24)


TINY = {name: value for name, value in sampling.TINY.items() if name != "rope_parameters"} | {"num_hidden_layers": 3}
OTHERWISE = {"kimi_linear": {"num_key_value_heads": 2}, "mamba2": {"hidden_size": 32}}


@pytest.mark.parametrize("architecture", ["qwen3_5_text", "mamba2", "kimi_linear", "lfm2", "minimax"])
def test_sampled_texts_follow_the_distribution(architecture: str) -> None:
    target = checkpoint(architecture, seed=9, **TINY | OTHERWISE.get(architecture, {}))
    sampling.assert_follows(target)


def test_with_an_earlier_transformers_they_decode_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "version", lambda package: "5.17.0")
    target = checkpoint("qwen3_next")
    assert not read_spec(target).can_branch
    with pytest.raises(UnsupportedModelError, match="recurrent state, which cannot branch"):
        OffloadRuntime.from_pretrained(target, checkpoint("llama"), device="cpu")


def test_limits_of_time_steps_hold_for_the_prompt_alone() -> None:
    """As in transformers, whose form for single tokens has none. Zamba 2 has a lower limit of 0.001."""
    how = {"time_step_limit": (0.4, 0.9)}
    target = checkpoint("bamba", **how)
    assert greedy(target, LONG, 32) != greedy(checkpoint("bamba"), LONG, 32), "the limit matters"
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        for prompt in (LONG, LONG[:9], LONG[:9]):
            assert runtime.generate(prompt, max_new_tokens=32, temperature=0).token_ids == greedy(target, prompt, 32)


SIZES = {  # layers, heads, key and value widths, channels of a convolution, its kernel
    "bamba": (2, 8, 8, 8, 8 * 8 + 2 * 8, 4),
    "falcon_h1": (3, 8, 8, 8, 8 * 8 + 2 * 8, 4),
    "zamba2": (5, 8, 8, 8, 8 * 8 + 2 * 8, 4),
    "kimi_linear": (2, 4, 8, 8, 3 * 4 * 8, 4),
    "lfm2": (2, 0, 0, 0, 32, 3),
    "minimax": (2, 4, 8, 8, 0, 1),
}


@pytest.mark.parametrize("architecture", SIZES)
def test_the_plan_counts_states_of_other_kinds(architecture: str) -> None:
    layers, heads, key, value, channels, kernel = SIZES[architecture]
    states = read_spec(checkpoint(architecture), "float32").states
    assert states is not None
    assert states.nbytes == layers * (heads * key * value + channels * (kernel - 1)) * 4
    keys = {"kimi_linear": heads * 3 * key, "lfm2": 0, "minimax": heads * key}.get(architecture, key)
    assert states.row_bytes == layers * (keys + heads * (value + 2) + channels) * 4


def test_states_are_as_large_as_planned() -> None:
    for architecture in BRANCHING:
        with streaming_runtime(checkpoint(architecture), **TREE) as runtime:
            runtime.generate(PROMPT, max_new_tokens=4, temperature=0)
            layers = [layer for layer in runtime._models.target.model.cache.layers if isinstance(layer, BranchingLayer)]
            held = [t for layer in layers for t in (*layer.states[0].inputs.values(), layer.states[0].memory)]
            states = read_spec(checkpoint(architecture), "float32").states
            assert states is not None and layers
            assert sum(tensor.nbytes for tensor in held if tensor is not None) == states.nbytes, architecture


def test_the_plan_counts_the_states() -> None:
    spec = read_spec(checkpoint("qwen3_next"), "float32")
    heads, width, channels, kernel, layers = 4, 8, 2 * 2 * 8 + 4 * 8, 4, 2
    assert spec.states is not None
    assert spec.states.nbytes == layers * (heads * width * width + channels * (kernel - 1)) * 4
    assert spec.states.row_bytes == layers * (heads * (2 * width + 2) + channels) * 4
