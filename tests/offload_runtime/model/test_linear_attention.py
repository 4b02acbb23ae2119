"""Recurrent layers that branch: each node of a tree follows its own path, and texts go back to earlier states."""

from itertools import product

import numpy as np
import pytest
import torch

from loaders.checkpoint import recurrent
from loaders.checkpoint.read_spec import read_spec
from loaders.errors import UnsupportedModelError
from offload_runtime import OffloadRuntime
from offload_runtime.model.linear_attention.delta_rule import over_tree
from offload_runtime.model.linear_attention.states import Branches
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.samples.architectures import BRANCHING
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, reference, streaming_runtime

TREE = {"context_length": 160, "tree": "sequoia", "tree_size": 8, "tree_depth": 4}
CHUNK = 64  # of the chunked form in transformers
LONG = [(7 * i * i) % 90 + 5 for i in range(CHUNK + 2)]


def random_tree(generator: torch.Generator) -> torch.Tensor:
    """bool [n, n]: each node and its ancestors."""
    count = int(torch.randint(1, 40, (1,), generator=generator))
    visible = torch.eye(count, dtype=torch.bool)
    for node in range(1, count):
        visible[node] |= visible[int(torch.randint(0, node, (1,), generator=generator))]
    return visible


@pytest.mark.parametrize("passes", [1, 2])
def test_every_node_is_as_if_its_path_ran_alone(passes: int) -> None:
    """In float64, over 200 random trees; in two passes, of which the second sees the first."""
    worst = 0.0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        visible = random_tree(generator)
        n, state = len(visible), torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
        sizes = ((3, n, 5), (3, n, 5), (3, n, 4), (3, n), (3, n))
        query, key, value, decay, beta = (
            torch.randn(*size, dtype=torch.float64, generator=generator) for size in sizes
        )
        key, decay, beta = key / key.norm(dim=-1, keepdim=True), -decay.abs(), beta.sigmoid()
        ends, outputs, writes = [n] if passes == 1 or n == 1 else [n // 2, n], [], None
        for begin, end in zip([0, *ends], ends):
            parts = (tensor[:, begin:end] for tensor in (query, key, value, decay, beta))
            output, writes = over_tree(*parts, state, visible[begin:end, :end], writes)
            outputs.append(output)
        assert writes is not None
        for node in range(n):
            path, memory = visible[node].nonzero()[:, 0], state
            for step in path.tolist():
                memory = memory * decay[:, step, None, None].exp()
                delta = beta[:, step, None] * (value[:, step] - torch.einsum("hkv,hk->hv", memory, key[:, step]))
                memory = memory + key[:, step, :, None] * delta[:, None]
            expected = torch.einsum("hkv,hk->hv", memory, query[:, node])
            worst = max(worst, float((torch.cat(outputs, 1)[:, node] - expected).abs().max()))
            worst = max(worst, float((writes.state_after(state, path) - memory).abs().max()))
    assert worst < 1e-13


@pytest.mark.parametrize("architecture", sorted(BRANCHING))
@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 2])
def test_long_texts_around_the_edge_of_a_chunk(architecture: str, length: int) -> None:
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        reply = runtime.generate(LONG[:length], max_new_tokens=72, temperature=0)
    assert reply.token_ids == greedy(target, LONG[:length], 72) and reply.stats.tokens_per_pass > 1.3


@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "none"])
def test_going_back_reads_from_the_last_state_that_was_kept(tree: str) -> None:
    """The same prompt again, a longer one after its reply, one that leaves it early, and the first once more."""
    target = checkpoint("qwen3_next")
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


def test_texts_that_share_passes_keep_states_apart() -> None:
    target, prompts = checkpoint("qwen3_next"), [[*LONG[:50], 3 + number] for number in range(5)]
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


@pytest.mark.parametrize(
    ("place", "mistake"),
    [
        ("Branches.windows", see_siblings),
        ("BranchingLayer.commit", keep_the_text_alone),
    ],
)
def test_mistakes_are_found(place: str, mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"offload_runtime.model.linear_attention.states.{place}", mistake)
    target = checkpoint("qwen3_next")
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=24, temperature=0).token_ids != greedy(target, PROMPT, 24)


TINY = {name: value for name, value in sampling.TINY.items() if name != "rope_parameters"} | {"num_hidden_layers": 3}


@pytest.mark.parametrize("architecture", ["qwen3_5_text", "olmo_hybrid"])
def test_sampled_texts_follow_the_distribution(architecture: str) -> None:
    target = checkpoint(architecture, seed=9, **TINY)
    distribution = np.ones([sampling.VOCABULARY] * sampling.TOKENS)
    for tokens in product(range(sampling.VOCABULARY), repeat=sampling.TOKENS):
        for place in range(sampling.TOKENS):
            with torch.inference_mode():
                text = torch.tensor([[*sampling.PROMPT, *tokens[:place]]])
                logits = reference(target)(text, use_cache=False).logits[0, -1].double()
            distribution[tokens] *= float(logits.softmax(-1)[tokens[place]])
    options = {"device": "cpu", "context_length": 32, **sampling.TREES["sequoia by traversal"]}
    with OffloadRuntime.from_pretrained(target, sampling.draft(), **options) as runtime:
        counts, single_passes = sampling.sampled(runtime, range(400))
    assert sampling.agreement(counts, torch.from_numpy(distribution)) > 1e-4
    assert 0.05 < single_passes < 0.95


def test_with_an_earlier_transformers_they_decode_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "version", lambda package: "5.17.0")
    target = checkpoint("qwen3_next")
    assert not read_spec(target).can_branch
    with pytest.raises(UnsupportedModelError, match="recurrent state, which cannot branch"):
        OffloadRuntime.from_pretrained(target, checkpoint("llama"), device="cpu")


def test_the_plan_counts_the_states() -> None:
    spec = read_spec(checkpoint("qwen3_next"), "float32")
    heads, width, channels, kernel, layers = 4, 8, 2 * 2 * 8 + 4 * 8, 4, 2
    assert spec.states is not None
    assert spec.states.nbytes == layers * (heads * width * width + channels * (kernel - 1)) * 4
    assert spec.states.row_bytes == layers * (heads * (2 * width + 2) + channels) * 4
