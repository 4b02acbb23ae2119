"""Calls of tools as each family writes them are read back, however the text comes in pieces."""

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.reply_text import ReplyText
from offload_runtime.text.tools.tool_call import ToolCall
from offload_runtime.text.tools.tool_definitions import Tools
from tests.samples.tool_templates import FAMILIES, call, family_tokenizer, tool

pytestmark = pytest.mark.slow

TOOLS = Tools.of(
    [
        tool("add", a="integer", b="number", note="string"),
        tool("list_files", path="string", recursive="boolean", names="array", more="object"),
        tool("now"),
    ]
)
CALLS: list[list[dict[str, Any]]] = [
    [call("add", {"a": 1, "b": 2.5, "note": "é 😀 \\ and \"quotes\", 'too'"})],
    [call("list_files", {"path": "/tmp/x y", "recursive": True, "names": ["a", None], "more": {"k": {"l": [1]}}})],
    [call("now", {})],
    [call("add", {"note": "two\nlines\n\n  and </tool_call> too", "a": -3}), call("now", {}, "Zb3Cd6Ef9")],
]
ALL = [name for name in FAMILIES if name not in ("llama", "gpt-oss")]
QUESTION = {"role": "user", "content": "what is it?"}


@cache
def asked(name: str, are_special: bool) -> str:
    """The prompt."""
    return render_chat(family_tokenizer(name, are_special), [QUESTION], True)


def written(name: str, calls: Sequence[dict[str, Any]], content: str = "", are_special: bool = True) -> list[int]:
    """The ids of a reply as the family's template writes it, without what ends it."""
    tokenizer = family_tokenizer(name, are_special)
    whole = render_chat(tokenizer, [QUESTION, {"role": "assistant", "content": content, "tool_calls": calls}], False)
    reply = whole.removeprefix(asked(name, are_special)).rstrip()
    ids = tokenizer.encode(reply, add_special_tokens=False)
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def read(name: str, ids: Sequence[int], are_special: bool = True) -> tuple[str, str, list[ToolCall]]:
    """Thoughts, answer and calls."""
    tokenizer = family_tokenizer(name, are_special)
    prompt = tokenizer.encode(asked(name, are_special), add_special_tokens=False)
    text = ReplyText(tokenizer, prompt, tools=TOOLS)
    pieces = [*(text.push(token) for token in ids), text.finish()]
    return "".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces), [*text.calls]


def expected(calls: Sequence[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(one["function"]["name"], one["function"]["arguments"]) for one in calls]


def found(calls: Sequence[ToolCall]) -> list[tuple[str, Any]]:
    return [(one.name, json.loads(one.arguments)) for one in calls]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("are_special", [True, False])
@pytest.mark.parametrize("calls", CALLS)
def test_what_a_family_writes_is_read(name: str, are_special: bool, calls: list[dict[str, Any]]) -> None:
    calls = calls[:1] if name not in ALL else calls
    if name == "kimi":
        calls = [call(*pair, f"functions.{pair[0]}:{number}") for number, pair in enumerate(expected(calls))]
    thoughts, answer, read_calls = read(name, written(name, calls, are_special=are_special), are_special)
    assert (thoughts, answer, found(read_calls)) == ("", "", expected(calls))
    if FAMILIES[name].kept_ids:
        assert [one.id for one in read_calls] == [one["id"] for one in calls]
    assert all(one.id for one in read_calls) and len({one.id for one in read_calls}) == len(calls)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("are_special", [True, False])
def test_text_before_calls_stays_and_the_space_between_them_goes(name: str, are_special: bool) -> None:
    ids = written(name, CALLS[0], "I add.\n\nNow:", are_special)
    _, answer, calls = read(name, ids, are_special)
    assert (answer, found(calls)) == ("I add.\n\nNow:", expected(CALLS[0])) or name == "kimi"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_without_calls_is_its_text(name: str) -> None:
    for text in ("Four.", "  Four. \n", "{1, 2}", '{"name": "Bob", "age": 3}', '{"a": 1}', "<", "[TOOL", "a < b \n\n"):
        ids = family_tokenizer(name).encode(text, add_special_tokens=False)
        assert read(name, ids) == ("", text, [])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("are_special", [True, False])
def test_a_call_that_is_cut_short_is_text(name: str, are_special: bool) -> None:
    tokenizer = family_tokenizer(name, are_special)
    ids = written(name, CALLS[0], "I add.", are_special)
    whole = tokenizer.decode(ids)
    for end in range(len(tokenizer.encode("I add.")), len(ids)):
        _, answer, calls = read(name, ids[:end], are_special)
        assert answer.startswith("I add.")
        if calls:  # complete but for its last mark
            assert found(calls) == expected(CALLS[0]) or name == "kimi"
        elif not are_special and "\N{REPLACEMENT CHARACTER}" not in answer:
            assert whole.startswith(answer)


_VALUES = st.one_of(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters='<|"')), st.integers())
_ARGUMENTS = st.dictionaries(st.sampled_from(["note", "path", "a"]), _VALUES, max_size=3)
_TYPED = _ARGUMENTS.filter(lambda given: all((key == "a") == isinstance(one, int) for key, one in given.items()))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(ALL), arguments=_TYPED, seed=st.integers(0, 9))
def test_any_arguments_come_back(name: str, arguments: dict[str, Any], seed: int) -> None:
    calls = [call("add", arguments, "functions.add:0" if name == "kimi" else f"Ab3Cd6Ef{seed}")]
    assert found(read(name, written(name, calls))[2]) == expected(calls)


def test_harmony_s_messages_are_thoughts_calls_and_text() -> None:
    tokenizer = family_tokenizer("gpt-oss")
    text = (
        "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant<|channel|>commentary<|message|>I add.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    variants = [text, text.replace(" <|constrain|>", "<|constrain|>"), text.removesuffix("<|call|>")]
    variants.append(text.replace("<|channel|>commentary to=functions.add ", " to=functions.add<|channel|>commentary "))
    for variant in variants:
        assert read("gpt-oss", tokenizer.encode(variant, add_special_tokens=False)) == (
            *("Add.", "I add."),
            [ToolCall("add", '{"a": 1}')],
        )
    cut = tokenizer.encode(text[: text.index(": 1")], add_special_tokens=False)
    assert read("gpt-oss", cut) == ("Add.", 'I add.\n\n{"a"', [])
    python = tokenizer.encode(text.replace("functions.add", "python"), add_special_tokens=False)
    assert read("gpt-oss", python) == ('Add.\n\n{"a": 1}', "I add.", [])


@pytest.mark.parametrize("are_special", [True, False])
@pytest.mark.parametrize(
    ("prompt", "header"),
    [
        ("<|start|>assistant<|channel|>commentary to=functions.add json<|message|>", ""),
        ("<|start|>assistant", " to=functions.add<|channel|>commentary json<|message|>"),
        ("<|start|>assistant", "<|channel|>commentary to=functions.add<|message|>"),
    ],
)
def test_a_prompt_may_begin_the_message_of_a_call(prompt: str, header: str, are_special: bool) -> None:
    tokenizer = family_tokenizer("gpt-oss", are_special)
    text = ReplyText(tokenizer, tokenizer.encode(prompt), tools=TOOLS)
    for token in tokenizer.encode(header + '{"a": 1}<|call|>', add_special_tokens=False):
        assert text.push(token) == ("", "")
    assert text.finish() == ("", "") and [*text.calls] == [ToolCall("add", '{"a": 1}')]


def test_pieces_of_thoughts_come_before_calls() -> None:
    rng = random.Random(0)
    for name in ("hermes", "mistral 11", "glm"):
        tokenizer = family_tokenizer(name)
        thinking = tokenizer.encode(f"<think>\n{rng.random()}\n</think>\n\n", add_special_tokens=False)
        thoughts, answer, calls = read(name, [*thinking, *written(name, CALLS[0])])
        assert thoughts and not answer and found(calls) == expected(CALLS[0])
