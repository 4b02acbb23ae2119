"""The place where a reply's answer begins, by tokens, is the one at which its text is split."""

import pytest

from offload_runtime.errors import UsageError
from offload_runtime.grammar.masks import Masks
from offload_runtime.grammar.thoughts import ReplyPosition, Thoughts
from offload_runtime.text.reasoning_marks import FAMILIES
from offload_runtime.text.reply_text import split_reply
from tests.offload_runtime.text.test_reasoning import QWEN, REPLIES, tokenizer_with

MARKS = tuple({mark: None for family in FAMILIES for mark in family.marks if " " not in mark})
TOKENIZER = tokenizer_with(QWEN, MARKS)
# A grammar knows no thoughts that begin behind space, or whose marks are sentences.
BY_TOKENS = [case for case in REPLIES if case[1] == case[1].lstrip() and "my" not in case[0] + case[1]]


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def answer_place(thoughts, prompt, ids):
    """How many tokens come before the answer."""
    place = thoughts.begin(prompt)
    for index, token in enumerate(ids):
        if place.answers and not (place.first and token in thoughts.openers):
            return index
        place = thoughts.after(place, token)
    return len(ids)


@pytest.mark.parametrize(("end", "text", "thought", "answer"), BY_TOKENS)
def test_it_is_where_the_text_is_split(end, text, thought, answer):
    prompt, ids = ids_of("x" + end), ids_of(text)
    count = answer_place(Thoughts(TOKENIZER), prompt, ids)
    first_thought = thought.partition("{}")[0] if answer else thought  # a call after the answer is a thought as well
    assert split_reply(TOKENIZER, prompt, ids[:count]) == (first_thought if count else "", "")
    assert count == len(ids) or split_reply(TOKENIZER, prompt, ids[: count + 1])[0] == first_thought


def test_a_thought_can_only_begin_a_reply_and_only_where_its_end_is_a_token():
    all_marks, one = Thoughts(TOKENIZER), Thoughts(tokenizer_with(QWEN, ("<think>", "</think>", "<thinking>")))
    assert all_marks.openers >= {TOKENIZER.convert_tokens_to_ids(mark) for mark in ("<think>", "<|channel|>")}
    assert TOKENIZER.convert_tokens_to_ids("</think>") not in all_marks.openers
    assert len(one.openers) == 1
    assert all_marks.begin(ids_of("x")) == ReplyPosition(all_marks.begin([]).state, first=True)


def test_an_opened_thought_without_a_token_for_its_end_is_refused():
    tokenizer = tokenizer_with(QWEN, ("<think>",))
    with pytest.raises(UsageError, match="where the answer begins"):
        Thoughts(tokenizer).begin(tokenizer.encode("x<think>\n", add_special_tokens=False))


class Anything:
    """A parser that allows every token anywhere, and ends nowhere."""

    read = 0

    def compute_bitmask(self):
        return b"\xff" * 100

    def try_consume_tokens(self, tokens):
        self.read += len(tokens)
        return len(tokens)

    def rollback(self, count):
        self.read -= count

    def is_accepting(self):
        return False

    is_error = is_accepting


def test_a_thought_is_free_but_does_not_end_the_reply():
    thoughts, parser, end = Thoughts(TOKENIZER), Anything(), 2
    opens, closes, letter = (TOKENIZER.convert_tokens_to_ids(text) for text in ("<think>", "</think>", "x"))
    masks = Masks(parser, [end], len(TOKENIZER), (), thoughts, thoughts.begin([]))
    paths = [(), (opens,), (opens, letter), (opens, letter, closes), (opens, closes, letter), (letter,)]
    assert not any(row[end // 8] & 1 << end % 8 for row in masks.after([], paths))
    masks.after([opens, letter], [(letter,), (letter, letter)])
    assert parser.read == 0, "what is thought is not for the parser"
    masks.after([opens, letter, closes, letter, letter], [(letter,)])
    assert parser.read == 3
