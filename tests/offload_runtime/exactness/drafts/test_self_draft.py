"""The target's own low-bit copy as its draft: the text is the target's, and no row of the copy stays in it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UnsupportedModelError, UsageError
from offload_runtime.model.low_bits.self_drafting import SelfDraftingModel
from offload_runtime.model.pass_part import text_part
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET
from offload_runtime.speculation.self_draft import SelfDraft
from scheduler.plan import placement, plan
from scheduler.plan.plan import Tier
from scheduler.plan.request import PlanRequest
from tests.offload_runtime.exactness import test_sampling_exactness as sampling
from tests.offload_runtime.exactness import test_shared_texts as shared
from tests.samples.quantized.packed_models import packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, make_checkpoint, streaming_runtime

NEW_TOKENS = 48
SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 64}
FAMILIES = ("llama", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen3_moe", "gpt_oss", "olmo2")
OPTIONS = {"context_length": 128, "dtype": "float32", "tree": "sequoia", "tree_size": 12, "tree_depth": 5}


@pytest.fixture
def streams(monkeypatch):
    """All layers stream, as a large model's: a tiny one whole takes less memory than slots and copies."""
    monkeypatch.setattr(PlanRequest, "resident_shapes", lambda request, context_length: iter(()))
    monkeypatch.setattr(plan, "place_on_device", lambda layers, room, copies=(): placement._placement(layers, 0, 2))


def model(family: str = "llama") -> Path:
    return checkpoint(family, **SIZES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("streams")
def test_streamed_text_equals_generate(family):
    with streaming_runtime(model(family), "self", **OPTIONS) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK} and "4-bit copy" in str(runtime.plan)
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
        per_pass = reply.stats.streamed_bytes / reply.stats.passes
        assert per_pass <= runtime._models.target.model.streamed_bytes, "drafting streams nothing"
    assert reply.token_ids == greedy(model(family), PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass > 1.3


@pytest.mark.parametrize(
    ("tree", "draft"), [("adaptive", "self:3"), ("auto", "self:5"), ("chain", "self:3"), ("adaptive", "self:5")]
)
@pytest.mark.usefixtures("streams")
def test_every_kind_of_tree_and_width(tree, draft):
    expected = greedy(model(), PROMPT, NEW_TOKENS)
    with streaming_runtime(model(), draft, **{**OPTIONS, "tree": tree}) as runtime:
        assert f"{draft[-1]}-bit copy" in str(runtime.plan)
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected
        turn = [*PROMPT, *expected[:9], 3]
        assert runtime.generate(turn, max_new_tokens=8, temperature=0).token_ids == greedy(model(), turn, 8)


@pytest.mark.parametrize("case", ["awq", "gptq experts", "FP8 blocks"])
@pytest.mark.usefixtures("streams")
def test_quantized_targets_draft_for_themselves(case):
    directory = packed_model(case)
    with streaming_runtime(directory, "self:3", **OPTIONS) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(directory / "decoded", PROMPT, NEW_TOKENS)


def test_layers_in_memory_draft_as_they_are():
    with OffloadRuntime.from_pretrained(model(), "self", device="cpu", **OPTIONS) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(model(), PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass > 5, "the draft is the target"


@pytest.mark.usefixtures("streams")
def test_texts_that_share_passes_are_their_own():
    with streaming_runtime(model(), "self", **shared.TREE, tree="sequoia") as runtime:
        for prompts in (shared.PROMPTS, shared.PROMPTS_ALIKE):
            for prompt, text in zip(prompts, shared.written(runtime, prompts)):
                assert text == greedy(model(), prompt, shared.NEW_TOKENS)[: len(text)]


@pytest.mark.parametrize("tree", ["sequoia", "adaptive"])
@pytest.mark.usefixtures("streams")
def test_sampled_texts_follow_the_targets_distribution(tree):
    directory = make_checkpoint("llama", 9, False, sampling.TINY)
    options = {"context_length": 32, "tree": tree, "dtype": "float32", **sampling.BUSHY}
    with streaming_runtime(directory, "self:3", **options) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        counts, single_passes = sampling.sampled(runtime, range(sampling.TEXTS))
    assert sampling.agreement(counts, sampling.joint_distribution()) > 1e-3
    assert single_passes > 0.02, "trees were drafted and accepted"


@pytest.mark.usefixtures("streams")
def test_a_pass_that_runs_the_copy_is_found_out(monkeypatch):
    """The control of the tests above: weights of the copy in the target's pass give another text."""
    expected = greedy(model(), PROMPT, NEW_TOKENS)
    with streaming_runtime(model(), "self:3", **OPTIONS) as runtime:
        forward = SelfDraftingModel.forward

        def of_the_copy(self, tokens, rows, logits_to_keep):
            self._drafting = True
            try:
                return forward(self, tokens, rows, logits_to_keep)
            finally:
                self._runs_copy = False

        monkeypatch.setattr(SelfDraftingModel, "forward", of_the_copy)
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids != expected


@pytest.mark.usefixtures("streams")
def test_a_row_of_the_copy_that_stays_is_found_out(monkeypatch):
    """As it would if the copy read a token of the text again and committed what it has read."""
    expected = greedy(model(), PROMPT, NEW_TOKENS)
    with streaming_runtime(model(), "self:3", **OPTIONS) as runtime:
        target, reading = runtime._models.target.model, SelfDraft.reading

        def keeps(self, text, sequence=0):
            cached = target.cache.sequences[sequence]
            cached.truncate(len(text) - 2)
            yield text_part(target, text[-2:-1], sequence, wanted=1)
            cached.commit([0])
            return (yield from reading(self, text, sequence))

        monkeypatch.setattr(SelfDraft, "reading", keeps)
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids != expected


@pytest.mark.usefixtures("streams")
def test_drafting_that_is_interrupted_leaves_the_text_as_it_was():
    expected = greedy(model(), PROMPT, NEW_TOKENS)
    with streaming_runtime(model(), "self", **OPTIONS) as runtime:
        target = runtime._models.target.model
        written: list[int] = []
        stops = iter(range(3, 40, 3))
        while len(written) < NEW_TOKENS:
            checks, stop = 0, next(stops, None)

            def should_stop(stop=stop):
                nonlocal checks
                checks += target._drafting
                return stop is not None and checks >= stop

            text = [*PROMPT, *written]
            reply = runtime.generate(
                text, max_new_tokens=NEW_TOKENS - len(written), temperature=0, should_stop=should_stop
            )
            written += reply.token_ids
    assert written == expected


def test_recurrent_models_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="recurrent layers, whose states a copy of it would change"):
        OffloadRuntime.from_pretrained(checkpoint("qwen3_next"), "self", device="cpu")


def test_other_widths_are_refused_by_name():
    with pytest.raises(UsageError, match="self:7: a copy of the model has 3, 4 or 5 bits a weight: self, self:3"):
        OffloadRuntime.from_pretrained(checkpoint("llama"), "self:7", device="cpu")


@pytest.mark.usefixtures("streams")
def test_planned_memory_is_what_is_used():
    with streaming_runtime(model(), "self", **OPTIONS) as runtime:
        runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
        items = {item.name: item.device_bytes for item in runtime.plan.items}
        [copy] = [nbytes for name, nbytes in items.items() if "4-bit copy" in name]
        copies = runtime._models.target.model._copies
        assert copy == sum(buffer.nbytes for buffer in copies._buffers.values())
        assert runtime._models.memory.peak_bytes <= runtime.plan.device_budget
        parts = [part for parts in copies._parts.values() for part in parts.values()]
        coded = sum(part.code.nbytes for part in parts if hasattr(part, "code"))
        assert coded * 32 // 4 > 0.8 * runtime._models.target.model.streamed_bytes, "most values are in the code"


@pytest.mark.usefixtures("streams")
def test_the_demo_target_drafts_better_for_itself_than_its_draft_does():
    """Twice the tokens per pass with 64 nodes at temperature 0.6, the same seeds; nearly so where a text is short."""
    tokens_per_pass = {}
    for draft in ("self", DEMO_DRAFT):
        options = {"context_length": 256, "tree": "sequoia", "tree_size": 64, "tree_depth": 16}
        with streaming_runtime(DEMO_TARGET, draft, **options) as runtime:
            replies = [
                runtime.generate(f"Once upon a time there was a {one}", max_new_tokens=60, temperature=0.6, seed=seed)
                for seed, one in enumerate(("small dog", "girl called Sue", "big red boat"))
            ]
        tokens_per_pass[draft] = sum(len(reply.token_ids) for reply in replies) / sum(r.stats.passes for r in replies)
    assert tokens_per_pass["self"] > 1.6 * tokens_per_pass[DEMO_DRAFT]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.usefixtures("streams")
def test_the_copy_is_what_the_code_says(dtype):
    """Of every streamed layer, each matrix is the middle of its bins, and what is small is kept."""
    with streaming_runtime(model(), "self:5", **{**OPTIONS, "dtype": str(dtype).removeprefix("torch.")}) as runtime:
        target = runtime._models.target.model
        weights = {name: tensor for name, tensor in torch_weights(model()).items() if "layers.0." in name}
        with target.drafting():
            target._copies.bind(0)
            views = target._copies.views(0)
        for name, view in views.items():
            weight = next(tensor for key, tensor in weights.items() if key.endswith(name)).to(dtype)
            error = (view.double() - weight.double()).norm() / weight.double().norm()
            assert error < 0.06 if weight.dim() > 1 else torch.equal(view, weight), name


def torch_weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}
