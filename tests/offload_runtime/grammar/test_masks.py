"""Masks of tokens: whatever is written under them parses, with every kind of tokenizer, in any order of asking."""

import json
import random

import numpy as np
import pytest
import torch

from offload_runtime.errors import UsageError
from offload_runtime.grammar.grammars import Grammars
from offload_runtime.text.tools.tool_definitions import Tools
from sequoia_tree.shaping.contexts import Text
from sequoia_tree.shaping.order import Bounds
from sequoia_tree.shaping.settings import Sampling
from tests.samples.tokenizer_samples import SAMPLES, byte_level

SCHEMA = {
    "type": "object",
    "properties": {
        "größe": {"enum": [1, 12, 128]},
        "words": {"type": "array", "items": {"enum": ["hello", "Köln", "你好", 'a "b"']}, "maxItems": 3},
        "free": {"type": "string", "maxLength": 5},
    },
    "required": ["größe", "words", "free"],
    "additionalProperties": False,
}
PROMPT = [5, 6]
BEST = 3.0  # score of one token, all others having 0


def rule_of(tokenizer, spare=0, ends=None):
    """The rule of SCHEMA for a model with `spare` more rows than tokens."""
    vocab_size = len(tokenizer) + spare
    ends = {tokenizer.eos_token_id} if ends is None else ends
    bounds = Bounds(PROMPT, ends, 1000, vocab_size, torch.device("cpu"))
    grammars = Grammars(lambda: tokenizer, vocab_size)
    given = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    return grammars.bind(given, Sampling(), bounds, False, Tools()).rules[-1], vocab_size


def allowed_after(rule, reply, paths, vocab_size):
    """bool [n, V] by the rule itself, for a chain of nodes per path under the end of the reply."""
    tokens, ancestors, nodes = [-1], [[0]], []
    for path in paths:
        above = [0]
        for token in path:
            above = [*above, len(tokens)]
            ancestors.append(above)
            tokens.append(token)
        nodes.append(len(ancestors) - 1 if path else 0)
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for node, above in enumerate(ancestors):
        mask[node, above] = True
    text = Text.of([*PROMPT, *reply], torch.device("cpu"))
    contexts = text.at(mask, torch.tensor(tokens), max(map(len, paths)))[torch.tensor(nodes)]
    return rule(torch.zeros(len(paths), vocab_size), contexts).isfinite()


@pytest.mark.parametrize("kind", SAMPLES)
def test_random_text_under_masks_follows_the_schema(kind):
    tokenizer = SAMPLES[kind]()
    try:
        rule, vocab_size = rule_of(tokenizer)
    except UsageError as error:
        assert kind in ("word-piece", "unigram") and "cannot use this model's tokenizer" in str(error)
        return
    for seed in range(6):
        reply, chooser = [], random.Random(seed)
        while not reply or reply[-1] != tokenizer.eos_token_id:
            row = allowed_after(rule, reply, [()], vocab_size)[0]
            reply.append(chooser.choice(row.nonzero()[:, 0].tolist()))
            assert len(reply) < 1000
        value = json.loads(tokenizer.decode(reply[:-1]))
        assert list(value) == list(SCHEMA["properties"])
        assert value["größe"] in (1, 12, 128) and len(value["free"]) <= 5
        assert {*value["words"]} <= {*SCHEMA["properties"]["words"]["items"]["enum"]}


def test_paths_and_texts_in_any_order_have_the_masks_of_plain_text():
    """Far jumps, tokens that cannot be, missing tokens, another text, the end: each mask is as if asked for alone."""
    tokenizer = byte_level()
    text = ' {"größe": 12, "words": ["Köln", "hello"], "free": "ab\\"c"}'
    whole = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    alone, vocab_size = rule_of(tokenizer, spare=3)
    expected = [allowed_after(alone, whole[:count], [()], vocab_size)[0] for count in range(len(whole))]
    rule, _ = rule_of(tokenizer, spare=3)
    chooser, bad = random.Random(0), (vocab_size - 1, -1, tokenizer.eos_token_id)
    for _ in range(40):
        begin = chooser.randrange(len(whole))
        ends = chooser.choices(range(begin, len(whole)), k=5)
        paths = [tuple(whole[begin:end]) for end in ends]
        wrong = [(*path[: len(path) // 2], chooser.choice(bad), *path) for path in paths]
        found = allowed_after(rule, whole[:begin], [*paths, *wrong], vocab_size)
        assert all(torch.equal(row, expected[end]) for row, end in zip(found, ends))
        assert found[len(paths) :].all()


def test_end_tokens_come_at_the_end_alone_and_rows_beyond_the_vocabulary_never():
    tokenizer = byte_level()
    comma, other = tokenizer.convert_tokens_to_ids([",", "<|user|>"])
    rule, vocab_size = rule_of(tokenizer, spare=70, ends={comma, other})
    written = '{"größe": 12, "words": [], "free": ""}'
    reply = tokenizer.encode(written.replace(",", ""), add_special_tokens=False)
    assert not allowed_after(rule, [], [()], vocab_size)[0, len(tokenizer) :].any()
    before = tokenizer.encode('{"größe": 12', add_special_tokens=False)
    row = allowed_after(rule, before, [()], vocab_size)[0]
    assert not row[[comma, other, tokenizer.eos_token_id]].any(), "a comma would end the reply too early"
    assert reply != before


def test_one_that_is_left_out_by_other_rules_is_taken_all_the_same():
    tokenizer = byte_level()
    rule, vocab_size = rule_of(tokenizer)
    contexts = Text.of(PROMPT, torch.device("cpu")).at_root()
    scores = torch.full((1, vocab_size), -torch.inf)
    scores[0, tokenizer.convert_tokens_to_ids("x")] = BEST
    shaped = rule(scores, contexts)
    free = rule(torch.zeros(1, vocab_size), contexts)
    assert torch.equal(shaped, free) and np.isfinite(free.numpy()).any()


def test_a_text_outside_the_grammar_is_an_error():
    tokenizer = byte_level()
    rule, vocab_size = rule_of(tokenizer)
    with pytest.raises(UsageError, match="within its grammar"):
        allowed_after(rule, [tokenizer.convert_tokens_to_ids("x")], [()], vocab_size)
