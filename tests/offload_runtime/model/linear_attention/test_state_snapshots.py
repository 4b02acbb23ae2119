"""Going back in a text over recurrent layers reads from the last kept state on; these are as many as planned."""

from typing import Any

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.model.linear_attention import snapshots
from offload_runtime.model.linear_attention.snapshots import INTERVAL, Snapshots
from offload_runtime.model.linear_attention.states import BranchingLayer
from scheduler.plan.memory import STATE_SNAPSHOTS
from tests.samples.tiny_models import checkpoint, greedy, perturbed

OPTIONS: dict[str, Any] = {"device": "cpu", "context_length": 400, "tree": "sequoia", "tree_size": 8, "tree_depth": 4}


def kept(*added: tuple[int, bool]) -> Snapshots[str]:
    some: Snapshots[str] = Snapshots()
    for length, ends_turn in added:
        some.add(length, f"after {length}", ends_turn)
    return some


def test_ends_of_turns_stay_while_a_long_reply_is_written() -> None:
    turns = [100, 300, 340, 900]
    some = kept(*((length, True) for length in turns), *((length, False) for length in range(901, 20_000)))
    inside = [length for length in some.lengths if length not in turns]
    assert some.lengths[:4] == turns and len(some) == STATE_SNAPSHOTS
    assert 0 < 19_999 - inside[-1] < INTERVAL and inside[0] > 10_000


def test_places_are_the_denser_the_nearer_they_are_to_the_end() -> None:
    some = kept(*((length, False) for length in range(INTERVAL, 64 * INTERVAL, INTERVAL)))
    gaps = [after - before for before, after in zip(some.lengths, some.lengths[1:])]
    assert len(some) == STATE_SNAPSHOTS and some.lengths[0] < 48 * INTERVAL
    assert gaps == sorted(gaps, reverse=True) and some.lengths[-1] == 63 * INTERVAL


def test_of_many_turns_the_last_ones_stay() -> None:
    some = kept(*((length, True) for length in range(10, 500, 10)))
    assert len(some) == STATE_SNAPSHOTS and some.lengths[-4:] == [460, 470, 480, 490]


def test_going_back_drops_what_lies_behind() -> None:
    some = kept((10, True), (300, True), (900, True))
    found = some.back_to(899)
    assert found is not None and (found.length, found.states) == (300, "after 300")
    assert some.lengths == [10, 300] and some.back_to(9) is None and not len(some)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(5, 95, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(
    ("architecture", "tree"),
    [("qwen3_next", "sequoia"), ("bamba", "none"), ("bamba", "sequoia"), ("nemotron_h", "sequoia")],
)
def test_a_chat_reads_only_what_is_new(architecture: str, tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply was cut short; the last answer is written again; its turns go on; a question is edited."""
    monkeypatch.setattr(snapshots, "INTERVAL", 16)
    target = checkpoint(architecture)
    first = tokens(70, seed=1)
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **{**OPTIONS, "tree": tree}) as runtime:

        def read(prompt: list[int], count: int) -> tuple[list[int], int]:
            reply = runtime.generate(prompt, max_new_tokens=count, temperature=0)
            assert reply.token_ids == greedy(target, prompt, count)
            return reply.token_ids, reply.stats.prompt_tokens_read

        answer, all_of_it = read(first, 60)
        stopped = [*first, *answer[:50]]
        _, cut_short = read([*stopped, *tokens(4, seed=4)], 8)
        second_answer, _ = read([*stopped, *tokens(30, seed=2)], 40)
        _, again = read([*stopped, *tokens(30, seed=2)], 40)
        _, third = read([*stopped, *tokens(30, seed=2), *second_answer, *tokens(20, seed=3)], 8)
        _, edited = read([*stopped, *tokens(30, seed=2), *second_answer, *tokens(9, seed=6)], 8)
        _, other_answer = read([*first, *tokens(4, seed=5)], 8)
    assert (all_of_it, again) == (70, 1)
    assert other_answer <= 4 + 1, "the end of the first question"
    if architecture == "nemotron_h":  # what was written is read again, with limits of its time steps
        assert 50 + 4 <= cut_short <= 50 + 5 and 40 + 9 <= edited <= 40 + 10
        return
    assert cut_short <= 4 + 16 + 5, "a place in the first answer"
    assert third <= 20 + 5 and edited <= 9 + 5, "the end of the second answer"


def test_no_more_states_are_held_than_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "INTERVAL", 8)
    target = checkpoint("bamba")
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **OPTIONS) as runtime:
        runtime.generate(tokens(40, seed=1), max_new_tokens=120, temperature=0)
        spec, cache = runtime._preparation.target.spec, runtime._models.target.model.cache
        layers = [layer for layer in cache.layers if isinstance(layer, BranchingLayer)]
        states = cache.sequences[0].states
        assert states is not None and spec.states is not None
        held = [*states.snapshots._kept[-1].states, *(layer.states[0] for layer in layers)]
        for one in states.snapshots._kept[:-1]:
            held += one.states
        distinct = {tensor.data_ptr(): tensor.nbytes for state in held if (tensor := state.memory) is not None}
        assert len(states.snapshots) == STATE_SNAPSHOTS
        assert sum(distinct.values()) <= (STATE_SNAPSHOTS + 1) * spec.states.nbytes


def test_without_places_in_a_turn_a_cut_reply_is_read_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(snapshots, "INTERVAL", 10_000)
    target, prompt = checkpoint("bamba"), tokens(70, seed=1)
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **OPTIONS) as runtime:
        answer = runtime.generate(prompt, max_new_tokens=60, temperature=0).token_ids
        cut = runtime.generate([*prompt, *answer[:50], 7, 8], max_new_tokens=8, temperature=0)
    assert cut.stats.prompt_tokens_read >= 50
