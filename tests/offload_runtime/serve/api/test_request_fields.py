"""Every field of a request: what it becomes, and by which name a wrong one is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from offload_runtime.generation.decode import Step
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.serve.api.asked import Asked, Offer
from offload_runtime.serve.api.chat import HARMLESS, read_chat
from offload_runtime.serve.api.completion import read_completion
from offload_runtime.serve.api.messages import MOST_MESSAGES, MOST_PARTS
from offload_runtime.serve.api.sampling import NUMBERS
from offload_runtime.serve.api.token_texts import TokenTexts
from offload_runtime.serve.errors import ApiError, openai_body
from tests.samples.tokenizer_samples import byte_level

OFFER = Offer("tiny", True, 8, TokenTexts(byte_level))
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


def chat(**fields: Any) -> Asked:
    return read_chat({"messages": HELLO, **fields}, OFFER)


def completion(**fields: Any) -> Asked:
    return read_completion({"prompt": "hello", **fields}, OFFER)


READERS = {"chat": chat, "completion": completion}


def arguments(asked: Asked) -> dict[str, Any]:
    found = dict(asked.texts[0].arguments)
    assert all(value is not None for name, value in found.items() if name != "seed")
    return {name: value for name, value in found.items() if value is not None}


def refused(read: Any, body: dict[str, Any], param: str, code: str | None = "invalid_value") -> str:
    with pytest.raises(ApiError) as raised:
        read(**body)
    error = openai_body(raised.value)["error"]
    assert (raised.value.status, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert error["message"].startswith(f"{param}: ") or param in error["message"]
    assert error["code"] == code
    return str(error["message"])


SAMPLING = {
    "temperature": (0.5, -1),
    "top_p": (0.9, 0),
    "top_k": (40, -1),
    "min_p": (0.05, 2),
    "repetition_penalty": (1.1, 0),
    "presence_penalty": (-0.5, 1e300),
    "frequency_penalty": (0.5, -1e300),
    "dry_multiplier": (0.8, -1),
    "dry_base": (1.75, 0.5),
    "dry_allowed_length": (2, -1),
    "dry_penalty_last_n": (0, 1.5),
    "xtc_probability": (0.5, 1.5),
    "xtc_threshold": (0.1, -0.1),
    "seed": (7, -7),
}


def test_all_numbers_are_tried() -> None:
    assert set(SAMPLING) == set(NUMBERS)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", SAMPLING)
def test_numbers(read: Any, name: str) -> None:
    good, wrong = SAMPLING[name]
    assert arguments(read(**{name: good})) == {name: good}
    assert arguments(read(**{name: None})) == {}
    assert "out of range" in refused(read, {name: wrong}, name) or type(wrong) is float
    for value in ("1", True, [1], {"a": 1}):
        assert "must be a number" in refused(read, {name: value}, name)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    assert arguments(chat(top_k=50.0, seed=1.0)) == {"top_k": 50, "seed": 1}
    assert all(type(value) is int for value in arguments(chat(top_k=50.0, seed=1.0, max_tokens=3.0)).values())
    assert "whole number" in refused(chat, {"top_k": 50.5}, "top_k")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_stop_is_a_text_or_several(read: Any) -> None:
    for name in ("stop", "dry_sequence_breakers"):
        assert arguments(read(**{name: "a"})) == {name: ("a",)}
        assert arguments(read(**{name: ["a", "b"]})) == {name: ("a", "b")}
        for wrong in ("", [""], ["a", 1], 7, {"a": "b"}, True):
            refused(read, {name: wrong}, name)
        for wrong in (["a"] * 65, "a" * 1025):
            assert "at most" in refused(read, {name: wrong}, name)
    assert arguments(read(stop=[])) == {"stop": ()}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_logit_bias_names_token_ids(read: Any) -> None:
    assert arguments(read(logit_bias={"15": -100, "7": 0.5})) == {"logit_bias": {15: -100.0, 7: 0.5}}
    for wrong in ({"x": 1}, {"-1": 1}, {"1.5": 1}, {"": 1}, {"1": 101}, {"1": "1"}, {"1": True}, {"1": None}, [1], 3):
        refused(read, {"logit_bias": wrong}, "logit_bias")
    refused(read, {"logit_bias": {"٣": 1}}, "logit_bias")  # a digit, but not of ASCII
    refused(read, {"logit_bias": {"9" * 11: 1}}, "logit_bias")


def test_most_tokens_have_two_names() -> None:
    for read, name in ((chat, "max_tokens"), (chat, "max_completion_tokens"), (completion, "max_tokens")):
        assert arguments(read(**{name: 5})) == {"max_new_tokens": 5}
        for wrong in (0, -1, 1.5, "5", True, [5], 1 << 40):
            refused(read, {name: wrong}, name)
    assert arguments(chat(max_tokens=5, max_completion_tokens=5)) == {"max_new_tokens": 5}
    assert "differs from max_tokens" in refused(
        chat, {"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"
    )


def test_several_texts_have_different_seeds() -> None:
    assert [text.arguments["seed"] for text in chat(n=3, seed=5).texts] == [5, 6, 7]
    assert [text.arguments["seed"] for text in chat(n=2, seed=2**63 - 1).texts] == [2**63 - 1, 0]
    assert [text.arguments["seed"] for text in chat(n=2).texts] == [None, None]
    many = read_completion({"prompt": ["a", "b"], "n": 2, "seed": 0}, OFFER)
    assert [(text.prompt, text.arguments["seed"]) for text in many.texts] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert "from 1 to 8" in refused(chat, {"n": 9}, "n")
    for wrong in (0, "1", 1.5, True):
        refused(chat, {"n": wrong}, "n")
    assert "from 1 to 4" in refused(completion, {"prompt": ["a", "b"], "n": 5}, "n")


def test_passes_are_told_if_asked() -> None:
    for given, told in (({"steps": True}, True), ({"steps": False}, False), ({}, False), (None, False)):
        (event,) = chat(stream=True, sequoia=given).form.step(0, Step([1], 0, 0, 0.1, 0.1, 0, text="a"))
        assert ("sequoia" in event.data) == told
    refused(chat, {"sequoia": True}, "sequoia")
    refused(chat, {"sequoia": {"steps": 1}}, "sequoia.steps")
    refused(chat, {"sequoia": {"step": True}}, "sequoia.step", "unknown_field")


def test_logprobs_of_a_chat() -> None:
    assert arguments(chat(logprobs=True)) == {"top_logprobs": 0}
    assert arguments(chat(logprobs=True, top_logprobs=20)) == {"top_logprobs": 20}
    assert arguments(chat(logprobs=False)) == {}
    assert "only with logprobs=true" in refused(chat, {"top_logprobs": 2}, "top_logprobs")
    for wrong in (21, -1, 1.5, "2", True):
        refused(chat, {"logprobs": True, "top_logprobs": wrong}, "top_logprobs")
    refused(chat, {"logprobs": 1}, "logprobs")


def test_logprobs_of_a_completion() -> None:
    assert arguments(completion(logprobs=0)) == {"top_logprobs": 0}
    assert arguments(completion(logprobs=5)) == {"top_logprobs": 5}
    for wrong in (True, 21, "1"):
        refused(completion, {"logprobs": wrong}, "logprobs")


def test_formats_are_passed_on() -> None:
    for given in ({"type": "json_object"}, SCHEMA):
        assert arguments(chat(response_format=given)) == {"response_format": given}
    assert arguments(chat(response_format={"type": "text"})) == {}
    for wrong in ({"type": "xml"}, {}, {"type": ["text"]}):
        refused(chat, {"response_format": wrong}, "response_format.type")
    refused(chat, {"response_format": "json_object"}, "response_format")
    for inner in ({}, {"json_schema": None}, {"json_schema": {"schema": None}}):
        refused(chat, {"response_format": {"type": "json_schema", **inner}}, "response_format.json_schema")


def test_variables_of_the_template_are_passed_on() -> None:
    given = {"enable_thinking": False}
    assert arguments(chat(chat_template_kwargs=given)) == {"template_arguments": given}
    refused(chat, {"chat_template_kwargs": [1]}, "chat_template_kwargs")
    refused(completion, {"chat_template_kwargs": given}, "chat_template_kwargs", "unknown_field")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_streams(read: Any) -> None:
    assert not read().stream and not read(stream=False).stream and read(stream=True).stream
    assert read(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).stream
    refused(read, {"stream": "true"}, "stream")
    refused(read, {"stream_options": {"include_usage": True}}, "stream_options")
    refused(read, {"stream": True, "stream_options": True}, "stream_options")
    refused(read, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage")
    refused(
        read, {"stream": True, "stream_options": {"continuous": True}}, "stream_options.continuous", "unknown_field"
    )
    obfuscated = {"stream": True, "stream_options": {"include_obfuscation": True}}
    refused(read, obfuscated, "stream_options.include_obfuscation", "unsupported_value")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_harmless_fields_change_nothing(read: Any) -> None:
    more = dict.fromkeys(HARMLESS, "x") | {"metadata": {"a": "b"}, "store": False}
    assert arguments(read(**more)) == {}
    for name in HARMLESS:
        refused(read, {name: 7}, name)
    refused(read, {"metadata": "x"}, "metadata")
    assert "true is not supported" in refused(read, {"store": True}, "store", "unsupported_value")


def test_harmless_fields_of_a_chat_and_of_a_completion() -> None:
    assert arguments(chat(parallel_tool_calls=True, modalities=["text"])) == {}
    assert arguments(completion(best_of=1, echo=False, suffix="")) == {}
    assert arguments(completion(n=3, best_of=3)) == {}
    for name, value in {"best_of": 2, "echo": True, "suffix": "x"}.items():
        refused(completion, {name: value}, name, "unsupported_value")
    refused(chat, {"modalities": ["text", "audio"]}, "modalities", "unsupported_value")
    refused(chat, {"parallel_tool_calls": "x"}, "parallel_tool_calls")


@pytest.mark.parametrize(
    "name",
    [
        *("functions", "function_call", "reasoning_effort", "verbosity", "audio", "prediction"),
        "web_search_options",
    ],
)
def test_known_but_unsupported_fields_are_refused_with_advice(name: str) -> None:
    message = refused(chat, {name: {"x": 1}}, name, "unsupported_field")
    assert "is not supported here: " in message


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_unknown_fields_are_refused_with_the_nearest_name(read: Any) -> None:
    assert "did you mean 'temperature'?" in refused(read, {"temprature": 1}, "temprature", "unknown_field")
    assert "did you mean" not in refused(read, {"qqq": 1}, "qqq", "unknown_field")
    long = "x" * 5000
    with pytest.raises(ApiError) as raised:
        read(**{long: 1})
    assert len(raised.value.message) < 500
    assert arguments(read(qqq=None)) == {}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_models(read: Any) -> None:
    def model_of(asked: Asked) -> str:
        return str(json.loads(json.dumps(asked.form.whole([])))["model"])

    assert model_of(read()) == "tiny" and model_of(read(model="gpt-4o")) == "gpt-4o"
    refused(read, {"model": 7}, "model")
    refused(read, {"model": "x" * 257}, "model")


def test_only_one_model_is_there() -> None:
    named = Offer("tiny", False, 8, OFFER.token_texts)
    assert read_chat({"messages": HELLO, "model": "tiny"}, named) and read_chat({"messages": HELLO}, named)
    with pytest.raises(ApiError, match=r"there is no model 'gpt-4o'; this server has 'tiny'") as raised:
        read_chat({"messages": HELLO, "model": "gpt-4o"}, named)
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")


def test_prompts_that_cannot_fit_are_refused_before_they_are_encoded() -> None:
    short = replace(OFFER, longest_prompt=10)
    code = "context_length_exceeded"
    for good in (HELLO * 2, "x" * 10, [1] * 99, [*HELLO, {"role": "assistant", "content": None}]):
        short.check_length(GenerationRequest(good))
        OFFER.check_length(GenerationRequest("x" * 11))
    for wrong, param in ((HELLO * 3, "messages"), ("x" * 11, "prompt")):
        refused(lambda prompt: short.check_length(GenerationRequest(prompt)), {"prompt": wrong}, param, code)


def test_messages_become_those_of_templates() -> None:
    asked = chat(
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": "c", "reasoning_content": "d", "name": None},
            {"role": "user", "content": ""},
        ]
    )
    assert asked.texts[0].prompt == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a\nb", "name": "x"},
        {"role": "assistant", "content": "c", "reasoning_content": "d"},
        {"role": "user", "content": ""},
    ]


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello", **fields}]}


@pytest.mark.parametrize(
    "body, param, code",
    [
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": HELLO * (MOST_MESSAGES + 1)}, "messages", "invalid_value"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_value"),
        ({"messages": [*HELLO, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_value"),
        (message(role=["user"]), "messages[0].role", "invalid_value"),
        (message(content=None), "messages[0].content", "invalid_value"),
        (message(content=7), "messages[0].content", "invalid_value"),
        (message(content=[{"type": "text", "text": "x"}] * (MOST_PARTS + 1)), "messages[0].content", "invalid_value"),
        (message(content=["x"]), "messages[0].content[0]", "invalid_value"),
        (message(content=[{"type": "text"}]), "messages[0].content[0].text", "invalid_value"),
        (message(content=[{"type": "text", "text": 1}]), "messages[0].content[0].text", "invalid_value"),
        (message(content=[{"type": "txt", "text": "x"}]), "messages[0].content[0].type", "invalid_value"),
        (message(content=[{"type": "text", "text": "x", "y": 1}]), "messages[0].content[0].y", "unknown_field"),
        (message(name=7), "messages[0].name", "invalid_value"),
        (message(weight=1), "messages[0].weight", "unknown_field"),
        (message(reasoning_content="x"), "messages[0].reasoning_content", "unknown_field"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_messages_are_named(body: dict[str, Any], param: str, code: str) -> None:
    refused(chat, body, param, code)


@pytest.mark.parametrize(
    "part, what",
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "images"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "files"),
    ],
)
def test_parts_that_are_no_text_are_refused_by_name(part: dict[str, Any], what: str) -> None:
    body = message(content=[{"type": "text", "text": "what is this?"}, part])
    said = refused(chat, body, "messages[0].content[1].type", "unsupported_part")
    assert f"{part['type']} is not supported" in said and f"no {what}" in said


def test_prompts_are_texts_or_token_ids() -> None:
    for given, expected in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ):
        assert [text.prompt for text in completion(prompt=given).texts] == expected
    for wrong in (None, "", [], [[]], [""], 7, True, [True], [[True]], [1.5], {"a": 1}, ["a", 1], [["a"]]):
        refused(completion, {"prompt": wrong}, "prompt")
    assert "at most 8" in refused(completion, {"prompt": ["a"] * 9}, "prompt")
