"""Models from GGUF files: streamed packed, decoded before use, greedy text that of the decoded weights."""

import pytest

from scheduler.plan import Tier
from tests.gguf_samples import CASES, gguf_model
from tests.tiny_models import PROMPT, greedy, perturbed, streaming_runtime

NEW_TOKENS = 24
TREE = {"context_length": 96, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_streamed_text_is_that_of_the_decoded_weights(case):
    """Every other case with a tree from a draft that is sometimes right, the others plainly."""
    file = gguf_model(case)
    draft = perturbed(file.parent / "decoded", 0.02) if list(CASES).index(case) % 2 else "none"
    with streaming_runtime(file, draft, dtype="float32", **TREE) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(file.parent / "decoded", PROMPT, NEW_TOKENS)
    assert len(set(reply.token_ids)) > 3
    assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    assert draft == "none" or reply.stats.tokens_per_pass > 1.5
