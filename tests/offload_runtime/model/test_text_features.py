"""The features that are kept of a text follow it through passes, accepted paths, truncation and copies."""

import random

import pytest
import torch
from torch import nn

from offload_runtime.model.heads.capture import HiddenStates
from offload_runtime.model.heads.text_features import TextFeatures
from scheduler.streaming.device_memory import DeviceMemory

PASS, WAITING, WIDTH = 8, 9, 2


class Text:
    """A text and its features. Every row has features that no other has, kept here in `truth`."""

    def __init__(self, states: HiddenStates, memory: DeviceMemory):
        self.features, self.truth = TextFeatures(states, WAITING, memory), []

    @property
    def length(self) -> int:
        return len(self.truth)


@pytest.fixture
def run():
    """Runs passes of several texts, each with so many rows, and returns the features of each."""
    memory, source, counter = DeviceMemory(torch.device("cpu")), nn.Identity(), iter(range(1, 10**9))
    states = HiddenStates((source,), WIDTH, PASS, torch.float32, memory)

    def run_pass(*parts: tuple[Text, int]) -> list[list[float]]:
        values = [[float(next(counter)) for _ in range(rows)] for _, rows in parts]
        states.begin()
        source(torch.tensor([value for part in values for value in part])[None, :, None].expand(1, -1, WIDTH))
        for text, rows in parts:
            text.features.passed(text.length, rows)
        return values

    run_pass.text = lambda: Text(states, memory)
    return run_pass


def kept(text: Text, begin: int, count: int) -> list[float]:
    return text.features.of(begin, count)[:, 1].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_features_are_those_of_the_rows_that_were_kept(run, seed):
    """Random passes, paths, truncation and copies of three texts, whose features are read now and then: what is read is
    right, and nothing is lost that there was room for."""
    dice, texts = random.Random(seed), [run.text() for _ in range(3)]
    for _ in range(60):
        parts = [(text, dice.randrange(1, 4)) for text in dice.sample(texts, dice.randrange(1, 3))]
        for text, rows in parts:
            if not text.features.has_room(rows):
                text.features.taken = text.length
        for (text, rows), values in zip(parts, run(*parts)):
            path = sorted(dice.sample(range(rows), dice.randrange(rows + 1)))
            text.features.commit(text.length, path)
            text.truth += [values[row] for row in path]
        text = dice.choice(texts)
        if dice.random() < 0.3:
            length = dice.randrange(text.length + 1)
            del text.truth[length:]
            text.features.truncate(length)
        if dice.random() < 0.2:
            other = dice.choice([one for one in texts if one is not text])
            length = dice.randrange(other.length + 1)
            text.truth = other.truth[:length]
            text.features.take_from(other.features, length)
        for text in texts:
            begin = max(0, min(text.features.taken, text.length) - 1)
            read = kept(text, begin, text.length - begin)
            assert all(mine in (truth, 0.0) for mine, truth in zip(read, text.truth[begin:]))
            if dice.random() < 0.5:
                text.features.taken = text.length


def test_what_waits_is_read_whole(run):
    text = run.text()
    for rows in (3, 2, 1):
        (values,) = run((text, rows))
        text.features.commit(text.length, range(rows))
        text.truth += values
    assert kept(text, 0, 6) == text.truth and text.features.waiting == 6
    assert text.features.has_room(2) and not text.features.has_room(3)
    text.features.taken = 6
    (values,) = run((text, 8))
    text.features.commit(6, [0, 2, 3, 7])
    assert kept(text, 5, 5) == [text.truth[5], values[0], values[2], values[3], values[7]]


def test_rows_that_came_otherwise_are_zero(run):
    text = run.text()
    run((text, 2))
    text.features.commit(10, [0])  # rows before were not passed
    assert kept(text, 9, 2) == [0.0, 0.0]
    run((text, PASS + 1))  # longer than any planned pass
    text.features.commit(11, [0])
    assert kept(text, 10, 2) == [0.0, 0.0]


def test_a_pass_that_was_dropped_leaves_nothing(run):
    text = run.text()
    run((text, 2))
    text.features.commit(0, [])
    text.features.commit(0, [0])
    assert kept(text, 0, 1) == [0.0]
