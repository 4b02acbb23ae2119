"""What is a response format, and which schemas are followed; all others are refused with the reason."""

import re

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.grammar import trial
from offload_runtime.grammar.grammars import Grammars
from offload_runtime.grammar.response_format import MOST_BYTES, MOST_LEVELS, grammar_of
from offload_runtime.grammar.trial import check_response_format
from offload_runtime.text.tools.tool_definitions import Tools
from sequoia_tree.shaping.settings import Sampling
from tests.samples.tiny_models import PROMPT, checkpoint


def of(schema):
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("given", [None, {"type": "text"}])
def test_any_text_needs_no_grammar(given):
    assert grammar_of(given) is None


def test_options_in_the_schema_are_replaced():
    """x-guidance would let a caller switch off that every keyword is followed."""
    grammar = grammar_of(of({"type": "object", "if": {}, "x-guidance": {"lenient": True}}))
    assert "lenient" not in grammar and grammar_of({"type": "json_object"}) == grammar_of(of({"type": "object"}))


WRONG = [
    ("json", "must be None, "),
    ({}, "must be None, "),
    ({"type": "regex"}, "must be None, "),
    ({"type": "json_schema"}, "must be None, "),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, "needs its schema"),
    (of([1]), "needs its schema"),
    (of({"enum": [float("nan")]}), "is not JSON"),
    (of({"enum": [{1, 2}]}), "is not JSON"),
    (of({"enum": ["x" * MOST_BYTES]}), f"more than {MOST_BYTES:,}"),
    (of(nested(MOST_LEVELS)), f"more than {MOST_LEVELS} levels"),
]


@pytest.mark.parametrize(("given", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_what_is_no_format_is_refused(given, reason):
    with pytest.raises(UsageError, match=re.escape(reason)):
        grammar_of(given)


def test_a_schema_that_holds_itself_is_refused():
    schema = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(UsageError, match="levels deep"):
        grammar_of(of(schema))


REFUSED = [
    ({"type": "object", "if": {}}, 'Unimplemented keys: ["if"]'),
    ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ({"enum": []}, "Unsatisfiable schema"),
    ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    ({"$ref": "http://127.0.0.1/x.json"}, "does not fetch"),
    ({"type": "number", "allOf": [{"multipleOf": 1009}, {"multipleOf": 1013}]}, "too much time or memory"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_cannot_be_followed_is_refused_with_the_reason(schema, reason):
    with pytest.raises(UsageError, match=re.escape(reason)) as error:
        check_response_format(of(schema))
    assert len(str(error.value)) < 400 and "start:" not in str(error.value), "the grammar around it is ours"


def test_large_schemas_are_followed():
    properties = {f"property_{index}": {"type": "integer"} for index in range(1000)}
    check_response_format(of({"type": "object", "properties": properties, "additionalProperties": False}))
    check_response_format(of({"type": "array", "items": {"$ref": "#"}}))
    assert grammar_of(of(nested(MOST_LEVELS - 1)))


def test_a_model_without_a_tokenizer_is_refused_before_anything_runs():
    with OffloadRuntime.from_pretrained(checkpoint("llama"), device="cpu", context_length=32) as runtime:
        with pytest.raises(UsageError, match="needs a tokenizer"):
            runtime.stream(list(PROMPT), response_format={"type": "json_object"})
        assert runtime.stream(list(PROMPT), response_format={"type": "text"})


def test_without_llguidance_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(trial, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install .*sequoia-offload\[serve\]"):
        Grammars(None, 8).bind({"type": "json_object"}, Sampling(), None, False, Tools())
