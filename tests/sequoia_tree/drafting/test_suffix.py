import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_tree.drafting.suffix import LONGEST_MATCH, SuffixMatcher

TEXTS = st.lists(st.integers(0, 2), max_size=30)


def longest_match(text):
    """(length, start) by trying every earlier place, the latest first."""
    best = 0, len(text)
    for start in range(len(text) - 1, 0, -1):
        length = 0
        while length < min(start, LONGEST_MATCH) and text[start - 1 - length] == text[-1 - length]:
            length += 1
        if length > best[0]:
            best = length, start
    return best


@given(TEXTS, TEXTS)
def test_match_against_every_earlier_place(text, tail):
    matcher = SuffixMatcher(text)
    assert matcher.match(tail) == longest_match(text + tail)
    assert matcher.match() == longest_match(text)


@given(TEXTS, TEXTS, st.integers(1, 40), st.integers(1, 4))
def test_continuation_copies_what_followed_and_then_itself(text, tail, count, min_match):
    length, start = longest_match(text + tail)
    copied = text + tail
    for place in range(start, start + count if length >= min_match else start):
        copied.append(copied[place])
    assert SuffixMatcher(text).continuation(count, min_match, tail) == copied[len(text + tail) :]


@given(st.lists(st.tuples(TEXTS, st.integers(0, 30)), max_size=5))
def test_growing_and_cutting_leave_what_a_new_matcher_would_hold(steps):
    matcher, text = SuffixMatcher(), []
    for tokens, length in steps:
        matcher.extend(tokens)
        text = (text + tokens)[:length]
        matcher.truncate(min(length, len(matcher)))
        assert len(matcher) == len(text)
        assert matcher.match() == longest_match(text)
    matcher.restart([5, 6, 5])
    assert matcher.continuation(3) == [6, 5, 6]


def test_the_latest_of_equal_matches_and_the_longest_of_all():
    assert SuffixMatcher([1, 2, 7, 1, 2, 8, 1, 2]).continuation(1) == [8]
    assert SuffixMatcher([9, 1, 2, 7, 1, 2, 8, 9, 1, 2]).continuation(2) == [7, 1]
    assert SuffixMatcher([1, 2, 3]).continuation(4) == []
    assert SuffixMatcher([3, 1, 2, 1]).continuation(4, min_match=2) == []


def test_matches_end_at_the_longest():
    run = list(range(LONGEST_MATCH + 1))
    matcher = SuffixMatcher([*run, 500, *run[1:], 600, *run])
    assert matcher.match() == (LONGEST_MATCH, 2 * len(run))  # one longer lies further back


def test_a_long_text_takes_milliseconds():
    rng = random.Random(0)
    text = [int(5 * rng.paretovariate(1.0)) for _ in range(100_000)]
    started = time.process_time()
    matcher = SuffixMatcher(text)
    for token in text[:100]:
        matcher.extend([token])
        matcher.match([7])
    matcher.restart(text)
    assert time.process_time() - started < 1


def test_wrong_arguments_are_named():
    matcher = SuffixMatcher([1, 2])
    with pytest.raises(ValueError, match="2 tokens can be cut to 0 to 2, not to 3"):
        matcher.truncate(3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        matcher.continuation(0)
    assert SuffixMatcher().match() == (0, 0)


def every_match(text, least):
    """(length, start) of every earlier place that agrees in `least` tokens, the longest first, then the latest."""
    found = []
    for start in range(len(text) - 1, 0, -1):
        length = 0
        while length < min(start, LONGEST_MATCH) and text[start - 1 - length] == text[-1 - length]:
            length += 1
        if length >= least:
            found.append((length, start))
    return sorted(found, reverse=True)


@given(TEXTS, st.integers(1, 5), st.integers(1, 9), st.integers(1, 4))
def test_continuations_of_the_best_earlier_places(text, count, most, least):
    expected = []
    for length, start in every_match(text, least)[:count]:
        copied = list(text)
        for place in range(start, start + most):
            copied.append(copied[place])
        expected.append((length, copied[len(text) :]))
    assert SuffixMatcher(text).continuations(count, most, least) == expected


def test_the_best_continuation_is_the_match_itself():
    matcher = SuffixMatcher([9, 1, 2, 7, 1, 2, 8, 9, 1, 2])
    assert matcher.continuations(3, 2) == [(3, [7, 1]), (2, [8, 9])]
    with pytest.raises(ValueError, match="at least 1, got 0, 2 and 1"):
        matcher.continuations(0, 2)
