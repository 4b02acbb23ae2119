"""Plain decoding against trees under made-up clocks: which one is settled on, how soon, and what trying costs."""

import random

import pytest

from sequoia_tree.choice.contest import Contest, Pace


class Decoding:
    """Steps of a contest: `plain` seconds for one token, `tree` seconds for 1 to 2 · tokens - 1 of them.

    noise: the share of steps that take ten times as long.
    """

    def __init__(self, plain, tree, tokens, predicted=None, noise=0.0):
        self.plain, self.tree, self.tokens, self.noise = plain, tree, tokens, noise
        self.contest, self.random, self.seconds, self.written = Contest(), random.Random(0), 0.0, 0.0
        seconds, expected = predicted or (tree, tokens)
        self.contest.plain.predict(plain, 1.0)
        self.contest.tree.predict(seconds, expected)

    def run(self, steps):
        """For each step whether it drafted."""
        return [self._step() for _ in range(steps)]

    def _step(self):
        drafts = self.contest.drafts()
        tokens = self.random.choice([1, self.tokens, 2 * self.tokens - 1]) if drafts else 1
        seconds = self.tree if drafts else self.plain
        disturbed = 10 if self.random.random() < self.noise else 1
        self.contest.passed(drafts, disturbed * seconds, tokens)
        self.seconds += seconds
        self.written += tokens
        return drafts

    @property
    def against_plain(self):
        """Times as fast as plain decoding, all steps together and none disturbed."""
        return self.written * self.plain / self.seconds


@pytest.mark.parametrize("milliseconds", [0.1, 5, 4000], ids=lambda n: f"{n} ms")
def test_a_tree_that_looked_good_and_is_slower_gives_way(milliseconds):
    """Predicted twice as fast, in truth 1.4 times as slow: passes took 2.3 times what was predicted."""
    seconds = milliseconds / 1000
    decoding = Decoding(seconds, 2.8 * seconds, 2, predicted=(1.2 * seconds, 2.4))
    first = decoding.run(32)
    assert first[0] and first.count(True) <= 20 and not any(first[-4:])
    decoding.run(2000)
    assert decoding.against_plain > 0.97


@pytest.mark.parametrize("noise", [0, 0.03])
@pytest.mark.parametrize("ratio", [1.1, 1.5, 3.0])
def test_a_tree_that_is_faster_is_kept(ratio, noise):
    tokens = 4
    decoding = Decoding(0.005, 0.005 * tokens / ratio, tokens, noise=noise)
    assert all(decoding.run(16))
    decoding.run(3000)
    assert decoding.against_plain > 0.95 * ratio


def test_a_tree_thought_slower_that_is_faster_is_found():
    decoding = Decoding(0.005, 0.010, 4, predicted=(0.012, 2.0))
    drafted = decoding.run(100)
    assert not any(drafted[:16]) and drafted[20:].count(True) > 70


def test_plain_decoding_is_not_tried_where_weights_stream():
    decoding = Decoding(4.0, 4.4, 5)
    assert all(decoding.run(3000))


def test_a_tree_is_not_tried_where_that_takes_long():
    """Passes of seconds, bound by computing: nothing is known of trees but that they are predicted to be slow."""
    decoding = Decoding(1.0, 3.0, 1.5)
    assert not any(decoding.run(300))


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_a_draft_that_becomes_better_is_noticed(ratio):
    decoding = Decoding(0.005, 0.005 * 2 / ratio, 2)
    before = decoding.run(4000)
    assert before.count(True) < 0.06 * len(before)
    assert decoding.against_plain > 0.97
    decoding.tokens *= 1.6 / ratio
    assert decoding.run(2000)[-200:].count(True) > 150


def test_a_draft_that_becomes_worse_is_noticed_soon():
    decoding = Decoding(0.005, 0.010, 4)
    decoding.run(500)
    decoding.tokens = 1
    assert decoding.run(100)[-30:].count(True) <= 4


def test_trials_lose_at_most_two_percent():
    for ratio in (0.3, 0.6, 0.9):
        decoding = Decoding(0.005, 0.005 / ratio, 1)
        decoding.run(5000)
        lost = decoding.seconds - decoding.written * 0.005
        assert 0 < lost < 0.1 + 0.02 * decoding.seconds + 4 * 0.005 / ratio


def test_steps_that_are_not_like_others_cost_but_tell_nothing():
    contest = Contest()
    contest.plain.predict(0.005, 1.0)
    contest.tree.predict(0.006, 1.0)
    for _ in range(16):
        assert not contest.drafts()
        contest.passed(False, 0.005, 1)
    assert contest.drafts()
    contest.passed(True, 1.0, 1, usual=False)
    assert contest.tree.seconds_per_token == 0.006
    for _ in range(4):
        assert contest.drafts(), "the trial is as long as ever"
        contest.passed(True, 0.006, 1)
    drafted = []
    for _ in range(9_000):
        drafted.append(contest.drafts())
        contest.passed(drafted[-1], 0.006 if drafted[-1] else 0.005, 1)
    assert not any(drafted[:7_000]), "what it cost is made up for first"


def test_a_pace_is_predicted_until_it_is_observed():
    pace = Pace()
    pace.predict(6.0, 2.0)
    assert (pace.seconds_per_token, pace.tokens, pace.observed) == (3.0, 2.0, False)
    for seconds, tokens in [(1.0, 1), (1.0, 3), (100.0, 1)]:
        pace.add(seconds, tokens)
        pace.predict(8.0, 2.0)
        assert pace.seconds_per_token == 4.0
    pace.add(1.0, 3)
    pace.predict(8.0, 2.0)
    assert (pace.seconds_per_token, pace.tokens, pace.observed) == (0.5, 2.0, True)
    for _ in range(64):
        pace.add(4.0, 1)
    assert pace.seconds_per_token == 4.0
    pace.renew()
    for _ in range(5):
        pace.add(2.0, 1)
    assert pace.seconds_per_token == 2.0, "new steps soon outweigh what was left"
