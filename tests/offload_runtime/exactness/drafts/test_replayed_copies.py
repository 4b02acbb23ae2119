"""Levels of the target's own copy as CUDA graphs, on a GPU that only pretends: the target's passes go on streaming."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.generation.reply import Reply
from offload_runtime.model.low_bits.copies import LowBitCopies
from offload_runtime.model.padded_passes import NotReplayable
from tests.offload_runtime.exactness.drafts.test_self_draft import model, streams
from tests.pretend_cuda import Counts, pretend_cuda
from tests.samples.quantized.sixteen_bit_models import in_16_bits
from tests.samples.rows_in_8_bits import greedy_in_8_bits
from tests.samples.tiny_models import PROMPT, greedy

__all__ = ["streams"]
pytestmark = pytest.mark.usefixtures("streams")
OPTIONS: dict[str, Any] = {
    **{"tree": "sequoia", "tree_size": 12, "tree_depth": 5, "context_length": 64, "dtype": "float32"},
    **{"kv": "device", "device": "cuda"},
}
TOKENS = 12
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(4)]


def written(
    directory: Path, draft: str = "self", replays: bool = True, prompts: list[list[int]] = PROMPTS[:1], **options: Any
) -> tuple[list[Reply], Counts]:
    """Greedy replies, and what the GPU was given for them once all shapes are captured. replays: whether they may be.

    The graphs of one key length are no more than the widths, and the most memory that was held is within the plan.
    """
    with pretend_cuda() as cuda:
        before = cuda.held_bytes
        with OffloadRuntime.from_pretrained(directory, draft, **{**OPTIONS, **options}) as loaded:
            target = loaded._models.target.model
            assert loaded.plan.slots and loaded.plan.graphs == ("draft",) and target.replays
            with nullcontext() if replays else target.unpadded(), cuda.counting() as first:
                before_that = loaded.generate_many(prompts, max_new_tokens=TOKENS, temperature=0)
            padded = target.padded_total
            with nullcontext() if replays else target.unpadded(), cuda.counting() as counts:
                replies = loaded.generate_many(prompts, max_new_tokens=TOKENS, temperature=0)
            assert [reply.token_ids for reply in before_that] == [reply.token_ids for reply in replies]
            assert first.captures <= len(loaded.plan.padding.widths) * len(loaded.plan.padding.key_lengths)
            assert counts.captures == 0 and counts.replays == target.padded_total - padded
            assert cuda.timeline.peak - before <= loaded.plan.device_bytes
    return replies, counts


@pytest.mark.parametrize("replays", [True, False])
@pytest.mark.parametrize(
    ("family", "draft", "options"),
    [
        ("llama", "self:3", {"parallel": 3}),
        ("llama", "self:4", {"link": "packed"}),
        ("llama", "self:5", {"kv_bits": 8}),
        ("gemma2", "self", {"tree": "adaptive"}),
        ("mixtral", "self", {}),
    ],
    ids=lambda value: str(value),
)
def test_texts_are_the_targets(
    family: str, draft: str, options: dict[str, Any], replays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))
    directory = in_16_bits(model(family), tmp_path / "model")
    alone = greedy_in_8_bits if "kv_bits" in options else greedy
    expected = [alone(directory, prompt, TOKENS) for prompt in PROMPTS]
    replies, counts = written(directory, draft, replays, PROMPTS, **options)
    assert [reply.token_ids for reply in replies] == expected
    assert not replays or counts.replays > max(reply.stats.passes for reply in replies)


def test_a_level_is_one_launch_instead_of_hundreds() -> None:
    """The same trees, so the same passes: a graph for each level, and what writes its rows beforehand."""
    (with_graphs, replayed), (without, launched) = written(model()), written(model(), replays=False)
    assert with_graphs[0].token_ids == without[0].token_ids
    assert (passes := with_graphs[0].stats.passes) == without[0].stats.passes
    assert not launched.replays and replayed.replays >= 4 * passes
    saved = (launched.launches.total() - replayed.launches.total()) / replayed.replays
    assert saved > 100, "launches of a level, of a model of two layers"
    assert replayed.waits.total() <= launched.waits.total()


def test_a_copy_that_cannot_be_captured_drafts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It turns out within a layer; the pass is run again from its start."""
    bind, layers = LowBitCopies.bind, []

    def refuses_once(self: LowBitCopies, number: int) -> None:
        layers.append(number)
        if layers.count(1) == 1 and number == 1:
            raise NotReplayable("the host decides")
        bind(self, number)

    expected = greedy(model(), PROMPT, TOKENS)
    monkeypatch.setattr(LowBitCopies, "bind", refuses_once)
    with pretend_cuda(), OffloadRuntime.from_pretrained(model(), "self", **OPTIONS) as loaded:
        reply = loaded.generate(PROMPT, max_new_tokens=TOKENS, temperature=0)
        assert not loaded._models.target.model.replays
    assert reply.token_ids == expected and reply.stats.tokens_per_pass > 1.3


def test_rows_in_host_memory_are_not_replayed() -> None:
    expected = greedy(model(), PROMPT, TOKENS)
    with pretend_cuda(), OffloadRuntime.from_pretrained(model(), "self", **{**OPTIONS, "kv": "host"}) as loaded:
        assert loaded.plan.graphs == () and not loaded._models.target.model.replays
        reply = loaded.generate(PROMPT, max_new_tokens=TOKENS, temperature=0)
    assert reply.token_ids == expected


def test_a_copy_that_a_graph_does_not_decode_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: as if weights were only bound where a graph is captured, it multiplies what the last layer left."""
    replies, _ = written(model())
    bind, seen = LowBitCopies.bind, set()

    def once(self: LowBitCopies, number: int) -> None:
        if number in seen:
            layer = self._layers[number]
            layer.bind(self._parameters[layer.layout])
        else:
            seen.add(number)
            bind(self, number)

    monkeypatch.setattr(LowBitCopies, "bind", once)
    worse, _ = written(model())
    assert worse[0].token_ids == replies[0].token_ids and worse[0].stats.passes > replies[0].stats.passes
