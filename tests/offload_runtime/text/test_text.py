"""Incremental text: equal to decoding everything, at any block size, for every kind of tokenizer; stop strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from offload_runtime.text.detokenize import IncrementalText, StopStrings
from offload_runtime.text.reply_text import ReplyText
from tests.samples.tokenizer_samples import SAMPLES

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.text("aé你😀\u200d ▁\n�", max_size=40)


def in_blocks(tokenizer: PreTrainedTokenizerBase, ids: list[int], size: int, **options: object) -> list[str]:
    text = IncrementalText(tokenizer, **options)
    pieces = [text.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    return [*pieces, text.finish()]


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, size=st.integers(1, 9))
def test_blocks_give_the_text_of_all_ids(name: str, text: str, size: int) -> None:
    tokenizer = SAMPLES[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(in_blocks(tokenizer, ids, size)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=st.integers(1, 9), skip=st.booleans())
def test_any_ids_give_the_text_of_them_all(name: str, data: st.DataObject, size: int, skip: bool) -> None:
    """Also bytes that are no character, special tokens and spaces among them."""
    tokenizer = SAMPLES[name]()
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in ("☃", "😀", "é", "a", "▁ ", "<s>", "\n")]
    ids = data.draw(
        st.lists(
            st.integers(0, len(tokenizer) - 1) | st.sampled_from([one for piece in pieces for one in piece]),
            max_size=30,
        )
    )
    text = "".join(in_blocks(tokenizer, ids, size, skip_special_tokens=skip))
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_stray_byte_takes_the_ones_beside_it_along() -> None:
    tokenizer = SAMPLES["metaspace"]()
    ids = tokenizer.convert_tokens_to_ids(["h", "<0x0A>", "<0x2E>", "<0xFF>", "el"])
    assert in_blocks(tokenizer, ids, 1) == ["h", "", "", "", "\ufffd" * 3 + "el", ""]
    assert in_blocks(tokenizer, [*ids[:3], ids[4]], 1) == ["h", "", "", "\n.el", ""]


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_a_character_that_the_prompt_began_comes_out_whole(name: str) -> None:
    tokenizer = SAMPLES[name]()
    ids = tokenizer.encode("hello ☃", add_special_tokens=False)
    assert "".join(in_blocks(tokenizer, ids[-1:], 1, context=ids[:-1])) == "☃"


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_a_stop_string_of_bytes_ends_the_answer_at_once(name: str) -> None:
    tokenizer = SAMPLES[name]()
    ids = tokenizer.encode("hello\n\nhello", add_special_tokens=False)
    text = ReplyText(tokenizer, [], StopStrings(["\n\n"]))
    shown, pushed = "", []
    for token in ids:
        if not text.is_stopped:
            shown += text.push(token)[1]
            pushed.append(token)
    assert shown == "hello" and tokenizer.decode(pushed) == "hello\n\n"


@pytest.mark.parametrize("name", SAMPLES)
def test_text_after_a_context_is_what_it_adds(name: str) -> None:
    tokenizer = SAMPLES[name]()
    ids = tokenizer.encode("hello world hello world 😀", add_special_tokens=False)
    for cut in range(1, len(ids)):
        before = tokenizer.decode(ids[:cut], skip_special_tokens=True)
        if "\N{REPLACEMENT CHARACTER}" not in before:
            after = "".join(in_blocks(tokenizer, ids[cut:], 3, context=ids[:cut]))
            assert before + after == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_no_piece_ends_inside_a_character(name: str) -> None:
    tokenizer = SAMPLES[name]()
    pieces = in_blocks(tokenizer, tokenizer.encode("😀😁 naïve 你好", add_special_tokens=False), 1)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert max(map(len, pieces)) < 10


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_a_character_that_stays_unfinished_comes_out_at_the_end(name: str) -> None:
    tokenizer = SAMPLES[name]()
    ids = tokenizer.encode("hello ☃", add_special_tokens=False)[:-1]
    *pieces, rest = in_blocks(tokenizer, ids, 1)
    assert "".join(pieces) == "hello "
    assert set(rest) == {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_bytes_that_are_no_character_do_not_stop_the_text(name: str) -> None:
    tokenizer = SAMPLES[name]()
    broken = tokenizer.encode("☃", add_special_tokens=False)[-1:] * 6
    hello = tokenizer.encode("hello", add_special_tokens=False)
    text = IncrementalText(tokenizer)
    shown = "".join(text.push([token]) for token in hello + broken + hello)
    assert shown.startswith("hello\N{REPLACEMENT CHARACTER}") and shown.endswith("hello")


def test_special_tokens_are_skipped_or_kept() -> None:
    tokenizer = SAMPLES["metaspace"]()
    ids = [tokenizer.bos_token_id, *tokenizer.encode("hello", add_special_tokens=False), tokenizer.eos_token_id]
    assert "".join(in_blocks(tokenizer, ids, 1)) == "hello"
    assert "".join(in_blocks(tokenizer, ids, 1, skip_special_tokens=False)).endswith("</s>")


def test_the_window_stays_short() -> None:
    tokenizer = SAMPLES["byte-level"]()
    text = IncrementalText(tokenizer)
    for token in tokenizer.encode("hello world " * 200, add_special_tokens=False):
        text.push([token])
    assert len(text._window) < 8


def test_the_window_begins_before_special_tokens_that_follow_the_text() -> None:
    """A decoder that is not shown the last word takes the next one for the first, and drops its space."""
    tokenizer = SAMPLES["metaspace"]()
    hello, world = (tokenizer.encode(word, add_special_tokens=False) for word in ("hello", "world"))
    text = IncrementalText(tokenizer, [*hello, *[tokenizer.eos_token_id] * 20])
    assert text.push(world) + text.finish() == " world"


@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4)), size=st.integers(1, 7))
def test_stop_strings_cut_where_the_first_one_completes(text: str, stops: list[str], size: int) -> None:
    cut = text
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            cut = text[: end - max(map(len, done))]
            break
    filter = StopStrings(stops)
    shown = [filter.push(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join(shown) + filter.finish() == cut
    assert (filter.found is not None) == (cut != text)


def test_a_possible_stop_string_is_withheld_until_it_is_none() -> None:
    stops = StopStrings(["\nUser:"])
    assert stops.push("hello\nUs") == "hello"
    assert stops.push("ual") == "\nUsual"
    assert stops.push("\nUser: hi") == ""
    assert stops.found == "\nUser:" and stops.push("more") == "" and stops.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
