"""A model that is offered tools may call one in place of an answer in the format."""

from copy import deepcopy

import pytest
import torch

from offload_runtime.errors import UsageError
from offload_runtime.grammar.grammars import Grammars
from offload_runtime.text.tools.tool_definitions import Tools
from sequoia_tree.shaping.contexts import Text
from sequoia_tree.shaping.order import Bounds
from sequoia_tree.shaping.settings import Sampling
from tests.samples.tool_templates import family_tokenizer, tool

TOOLS = Tools.of([tool("add", a="integer")])
FORMAT = {"type": "json_object"}


def allowed_after(family, tools, text, end="</s>"):
    """Tells which tokens are allowed after a reply that begins with `text`; `end` is the one that ends a reply."""
    tokenizer = deepcopy(family_tokenizer(family))
    if family == "hermes":
        tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])  # no special ones, as in Qwen 3
    prompt = tokenizer.encode("x", add_special_tokens=False)
    ends = {tokenizer.convert_tokens_to_ids(end)}
    bounds = Bounds(prompt, ends, 1000, len(tokenizer), torch.device("cpu"))
    rule = Grammars(lambda: tokenizer, len(tokenizer)).bind(FORMAT, Sampling(), bounds, True, tools).rules[-1]
    reply = tokenizer.encode(text, add_special_tokens=False)
    contexts = Text.of([*prompt, *reply], torch.device("cpu")).at_root()
    row = rule(torch.zeros(1, len(tokenizer)), contexts)[0].isfinite()
    return lambda token: bool(row[tokenizer.convert_tokens_to_ids(token)])


@pytest.mark.parametrize("before", ["", "<think>Add.</think>", "<think>Add.</think>\n\n"])
def test_a_call_may_stand_where_the_answer_would(before):
    with_tools, without = (allowed_after("hermes", tools, before) for tools in (TOOLS, Tools()))
    assert with_tools("<tool_call>") and not without("<tool_call>")
    assert with_tools("{") and without("{") and not with_tools("x")


def test_what_follows_its_mark_is_free():
    begun = allowed_after("hermes", TOOLS, '<tool_call>{"name": "add"')
    assert begun("x") and begun("</tool_call>") and begun("</s>")
    answer = allowed_after("hermes", TOOLS, '{"name": "add"')
    assert not answer("x") and not answer("<tool_call>") and not answer("</s>")


def test_a_call_among_thoughts_may_end_the_reply():
    begun = "<|channel|>commentary to=functions.add<|message|>{}"
    assert allowed_after("gpt-oss", TOOLS, begun, end="<|call|>")("<|call|>")
    assert not allowed_after("gpt-oss", Tools(), begun, end="<|call|>")("<|call|>")
    assert not allowed_after("gpt-oss", TOOLS, begun, end="<|return|>")("<|return|>")


def test_calls_without_a_mark_are_refused_beside_a_format():
    with pytest.raises(UsageError, match="Give one of the two"):
        allowed_after("llama", TOOLS, "")
