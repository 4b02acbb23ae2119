"""Texts that share replayed passes, on a GPU that only pretends."""

from typing import Any

import pytest

from offload_runtime import OffloadRuntime
from scheduler.plan import padding
from tests.pretend_cuda import pretend_cuda
from tests.samples.rows_in_8_bits import greedy_in_8_bits
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed

OPTIONS: dict[str, Any] = {
    **{"tree_size": 12, "tree_depth": 3, "context_length": 64, "dtype": "float32", "parallel": 3},
    "kv": "device",
}
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(5)]
TOKENS = 8


@pytest.mark.parametrize(
    ("architecture", "kv_bits", "tree"),
    [("llama", None, "sequoia"), ("gemma3_text", None, "none"), ("llama", 8, "sequoia")],
)
def test_texts_are_their_own_and_memory_is_what_the_plan_says(
    architecture: str, kv_bits: int | None, tree: str
) -> None:
    target, alone = checkpoint(architecture), greedy_in_8_bits if kv_bits else greedy
    expected = [alone(target, prompt, TOKENS) for prompt in PROMPTS]
    draft = "none" if tree == "none" else perturbed(target, 0.02)
    with pretend_cuda() as cuda:
        before = cuda.held_bytes
        with OffloadRuntime.from_pretrained(target, draft, "cuda", tree=tree, kv_bits=kv_bits, **OPTIONS) as loaded:
            replies = loaded.generate_many(PROMPTS, max_new_tokens=TOKENS, temperature=0)
            assert [reply.token_ids for reply in replies] == expected
            models = [loaded._models.target.model, *([loaded._models.draft.model] if loaded._models.draft else [])]
            assert [(model.replays, model.padded_total > 1) for model in models] == [(True, True)] * len(models)
            assert cuda.timeline.peak - before <= loaded.plan.device_bytes


def test_graphs_outlive_a_pass_over_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that rows in 8 bits are dequantized to has its place from the first pass, which reads few of them."""
    monkeypatch.setattr(padding, "SHORTEST_KEYS", 32)
    target, prompts = checkpoint("llama"), [PROMPTS[0], list(range(50)), PROMPTS[0]]
    with (
        pretend_cuda(),
        OffloadRuntime.from_pretrained(target, "none", "cuda", tree="none", kv_bits=8, **OPTIONS) as loaded,
    ):
        model = loaded._models.target.model
        assert loaded.plan.padding.widths[-1] < len(prompts[1]), "read as it is, over all rows of the cache"
        for prompt in prompts:
            expected = greedy_in_8_bits(target, prompt, TOKENS)
            assert loaded.generate_many([prompt], max_new_tokens=TOKENS, temperature=0)[0].token_ids == expected
        assert model.replays and model.padded_total > 2 * TOKENS
