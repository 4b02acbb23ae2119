"""The JSON of answers, whole and in chunks, from steps and replies."""

from typing import Any

import pytest

from offload_runtime.generation.decode import Step
from offload_runtime.generation.reply import Reply, ReplyStats
from offload_runtime.serve.api.asked import SseEvent
from offload_runtime.serve.api.chat import ChatForm
from offload_runtime.serve.api.completion import CompletionForm
from offload_runtime.serve.api.token_texts import TokenTexts
from offload_runtime.serve.errors import ApiError
from offload_runtime.serve.http.answers import frame
from sequoia_tree.tree import Tree
from sequoia_tree.verification.logprobs import TokenLogprobs
from tests.samples.tokenizer_samples import byte_level, metaspace

TEXTS = TokenTexts(byte_level)


def step(text: str = "", reasoning: str = "", finish_reason: str | None = None, **more: Any) -> Step:
    return Step([1], 0, 0, 0.1, 0.1, 0, finish_reason, text, reasoning, **more)


def reply(text: str, tokens: int, prompt: int = 10, read: int = 4, passes: int = 1, **more: Any) -> Reply:
    stats = ReplyStats(prompt_tokens=prompt, prompt_tokens_read=read, tokens=tokens, passes=passes)
    return Reply(text=text, finish_reason="stop", stats=stats, **more)


def one(events: Any) -> dict[str, Any]:
    (event,) = events
    return event.data


def test_a_chat_in_chunks() -> None:
    form = ChatForm("tiny", 2, False, TEXTS)
    opening = [event.data for event in form.opening([])]
    assert [chunk["choices"][0]["delta"] for chunk in opening] == [{"role": "assistant", "content": ""}] * 2
    assert [chunk["choices"][0]["index"] for chunk in opening] == [0, 1]
    chunk = one(form.step(1, step("hello")))
    assert chunk["choices"] == [{"index": 1, "delta": {"content": "hello"}, "logprobs": None, "finish_reason": None}]
    assert chunk["object"] == "chat.completion.chunk" and chunk["model"] == "tiny" and "usage" not in chunk
    assert {chunk["id"], chunk["created"]} == {opening[0]["id"], opening[0]["created"]}
    assert one(form.step(0, step(reasoning="hm")))["choices"][0]["delta"] == {"reasoning_content": "hm"}
    both = one(form.step(0, step("b", "a")))["choices"][0]["delta"]
    assert both == {"reasoning_content": "a", "content": "b"}
    assert list(form.step(0, step())) == []
    last = [event.data["choices"][0] for event in form.step(0, step("end", finish_reason="length"))]
    assert [(choice["delta"], choice["finish_reason"]) for choice in last] == [
        ({"content": "end"}, None),
        ({}, "length"),
    ]
    assert [event.data for event in form.closing([])] == ["[DONE]"]


def test_chunks_tell_of_their_passes_if_asked() -> None:
    form = ChatForm("tiny", 1, True, TEXTS, shows_passes=True)
    tree, pieces = Tree([-1, 0]), ("hel", "lo")
    chunk = one(form.step(0, step("hello", tree=tree, path=(1,), pieces=pieces)))
    assert chunk["choices"][0]["delta"] == {"content": "hello"}
    assert chunk["sequoia"]["pieces"] == ["hel", "lo"]
    assert chunk["sequoia"]["tree"] == {"parents": [-1, 0], "accepted": [1]}
    chunk = one(form.step(0, step()))
    assert chunk["choices"][0]["delta"] == {} and chunk["sequoia"]["target_seconds"] == 0.1
    first, last = form.step(0, step("end", finish_reason="stop"))
    assert "sequoia" in first.data and "sequoia" not in last.data
    assert "sequoia" not in one(ChatForm("tiny", 1, True, TEXTS).step(0, step("hello")))


def test_the_last_chunk_gives_the_usage_if_asked() -> None:
    for form, kind in (
        (ChatForm("tiny", 2, True, TEXTS), "chat.completion.chunk"),
        (CompletionForm("tiny", 2, True, TEXTS), "text_completion"),
    ):
        assert one(form.step(0, step("a")))["usage"] is None
        usage, done = (event.data for event in form.closing([reply("a", 3), reply("b", 4)]))
        assert usage["choices"] == [] and usage["object"] == kind and done == "[DONE]"
        assert usage["usage"] == {
            "prompt_tokens": 10,
            "completion_tokens": 7,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 6},
        }


def test_a_prompt_that_was_never_read_was_not_cached() -> None:
    unread = reply("", 0, read=0, passes=0)
    details = ChatForm("tiny", 1, False, TEXTS).whole([unread])["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 0}


def test_a_chat_at_once() -> None:
    form = ChatForm("tiny", 2, False, TEXTS)
    whole = form.whole([reply("a", 1), reply("b", 2, reasoning="hm")])
    assert whole["object"] == "chat.completion" and whole["id"].startswith("chatcmpl-")
    messages = [choice["message"] for choice in whole["choices"]]
    assert messages[0] == {"role": "assistant", "content": "a"}
    assert messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "stop"]


def test_completions() -> None:
    form = CompletionForm("tiny", 1, False, TEXTS)
    assert list(form.opening([])) == []
    chunk = one(form.step(0, step("a", finish_reason="stop")))
    assert chunk["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}]
    assert list(form.step(0, step())) == []
    whole = form.whole([reply("a", 1, prompt=3, read=3), reply("b", 2, prompt=5, read=1)])
    assert whole["object"] == "text_completion" and whole["id"].startswith("cmpl-")
    assert [choice["text"] for choice in whole["choices"]] == ["a", "b"]
    assert whole["usage"]["prompt_tokens"] == 8 and whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


def test_logprobs_name_tokens_and_their_bytes() -> None:
    ids = byte_level().encode("é你", add_special_tokens=False)
    tokens = tuple(TokenLogprobs(token, -0.5, ((token, -0.5), (ids[0], -float("inf")))) for token in ids)
    content = one(ChatForm("tiny", 1, False, TEXTS).step(0, step(logprobs=tokens)))["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == "é你".encode()
    assert all(entry["logprob"] == -0.5 and entry["top_logprobs"][1]["logprob"] == -9999.0 for entry in content)
    assert "bytes:\\xc3" in "".join(entry["token"] for entry in content)


def test_the_first_space_of_a_token_is_kept() -> None:
    tokenizer = metaspace()
    texts = TokenTexts(metaspace)
    word = tokenizer.convert_tokens_to_ids("▁w")
    assert texts.of(word) == (" w", [32, 119])
    assert texts.of(tokenizer.convert_tokens_to_ids("<0xE4>")) == ("bytes:\\xe4", [0xE4])
    assert texts.of(tokenizer.convert_tokens_to_ids("<0x0A>")) == ("\n", [10])
    assert texts.of(tokenizer.eos_token_id)[0] == tokenizer.eos_token


def test_logprobs_of_a_completion_say_where_tokens_begin() -> None:
    ids = byte_level().encode("hello world", add_special_tokens=False)
    tokens = [TokenLogprobs(token, -1.0, ((token, -1.0),)) for token in ids]
    form = CompletionForm("tiny", 1, False, TEXTS)
    names = [TEXTS.of(token)[0] for token in ids]
    first = one(form.step(0, step(names[0], logprobs=tuple(tokens[:1]))))["choices"][0]["logprobs"]
    rest = one(form.step(0, step("".join(names[1:]), logprobs=tuple(tokens[1:]))))["choices"][0]["logprobs"]
    whole = form.whole([reply("hello world", len(ids), logprobs=tokens)])["choices"][0]["logprobs"]
    assert "".join(whole["tokens"]) == "hello world"
    for name, value in whole.items():
        assert first[name] + rest[name] == value
    assert whole["text_offset"] == [sum(map(len, names[:number])) for number in range(len(names))]
    assert whole["top_logprobs"] == [{name: -1.0} for name in names]


def test_an_error_ends_a_stream() -> None:
    for form in (ChatForm("tiny", 1, True, TEXTS), CompletionForm("tiny", 1, True, TEXTS)):
        error, done = form.failed(ApiError(503, "stopping", code="stopping"))
        expected = {"message": "stopping", "type": "server_error", "param": None, "code": "stopping"}
        assert error.data == {"error": expected} and done.data == "[DONE]"


@pytest.mark.parametrize("text", ["a\nb\r\n\n", 'q"\\', "\u2028é你😀", "\x00"])
def test_frames_are_one_line(text: str) -> None:
    sent = frame(SseEvent({"a": text}))
    assert sent.startswith(b"data: {") and sent.endswith(b"}\n\n")
    assert sent.count(b"\n") == 2 and b"\r" not in sent
    assert frame(SseEvent("x", "ping")) == b"event: ping\ndata: x\n\n"
