"""Replies in a response format follow the grammar, and within it the target's own distribution, for every tree.

The distribution over a language of a few words is enumerated without llguidance: a token is allowed if it leads to the
beginning of a word. Greedy text is that of plain decoding, token for token, under masks made here.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.grammar.masks import Masks
from offload_runtime.grammar.response_format import grammar_of
from offload_runtime.speculation.lookup import ngram_lookup
from tests.offload_runtime.exactness.test_demo_pair import PAIR, model, tokenizer
from tests.offload_runtime.exactness.test_sampling_exactness import (
    TOKENS,
    TREES,
    VOCABULARY,
    agreement,
    draft,
    logits_after,
    shows,
    target,
)

GRAMMAR_TREES = [
    *("none", "sequoia", "sequoia by traversal", "sequoia by match", "specinfer", "adaptive", "repeated text"),
]
PROMPT = [
    2,
    0,
    3,
    1,
    5,
    2,
    0,
    4,
    1,
    5,
    2,
    0,
]  # what followed 2 and 0 is proposed again, and then forbidden tokens
TEXTS = 150  # per tree, each about 10 ms
PIECES = ("[", "]", "1", "2", "12", "")  # of the vocabulary; the last token ends a text
END = len(PIECES) - 1
VALUES: list[object] = [1, 2, 12, 21, [], [1], [21], [1, 2]]  # [1,2] cannot be written: there is no comma
WORDS = [json.dumps(value, separators=(",", ":")) for value in VALUES]

SHAPE = {
    "type": "object",
    "properties": {
        "name": {"enum": ["circle", "square", "long-named shape"]},
        "sides": {"type": "integer", "minimum": 0, "maximum": 12},
        "open": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["name", "sides", "open", "tags"],
    "additionalProperties": False,
}
OTHER = {**SHAPE, "properties": {**SHAPE["properties"], "sides": {"enum": ["many"]}, "open": {"enum": [17]}}}
QUESTION = [{"role": "user", "content": "Show me a shape."}]
PAIR_TREES: dict[str, Mapping[str, object]] = {
    "none": {"tree": "none"},
    "repeated text": {"draft": "auto", "tree_size": 12},
    "sequoia": {"tree": "sequoia", "tree_size": 24, "tree_depth": 5},
    "adaptive": {"tree": "adaptive", "tree_size": 24, "tree_depth": 5},
    "specinfer": {"tree": "specinfer", "tree_size": 24, "tree_depth": 5},
}


def schema_format(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The target of six tokens, with a tokenizer that writes brackets, digits and one token of two digits."""
    copy = shutil.copytree(target(), tmp_path_factory.mktemp("tiny") / "model")
    vocabulary = {piece or "<end>": index for index, piece in enumerate(PIECES)}
    made = Tokenizer(models.BPE(vocabulary, [("1", "2")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": END, "do_sample": True}))
    return copy


def tiny_runtime(directory: Path, tree: str) -> OffloadRuntime:
    if tree == "repeated text":
        return OffloadRuntime.from_pretrained(directory, "auto", device="cpu", context_length=32, tree_size=6)
    return OffloadRuntime.from_pretrained(directory, draft(), device="cpu", context_length=32, **TREES[tree])


def allowed(reply: Sequence[int]) -> list[int]:
    """The tokens that may follow, by the words alone."""
    if END in reply:
        return [END]
    text = "".join(PIECES[token] for token in reply)
    further = [token for token in range(END) if any(word.startswith(text + PIECES[token]) for word in WRITABLE)]
    return [*further, END] if text in WRITABLE else further


WRITABLE = [word for word in WORDS if "," not in word]


def expected() -> torch.Tensor:
    """Probability of every continuation, [VOCABULARY] * TOKENS; a text that has ended goes on with the end token."""
    distribution = np.zeros([VOCABULARY] * TOKENS)
    for tokens in product(range(VOCABULARY), repeat=TOKENS):
        chance = 1.0
        for index, token in enumerate(tokens):
            before = tokens[:index]
            left = allowed(before)
            scores = np.exp(np.array(logits_after((*PROMPT, *before)), dtype=np.float64))
            chance *= scores[token] / scores[left].sum() if token in left else 0.0
        distribution[tokens] = chance
    return torch.from_numpy(distribution)


def counted(runtime: OffloadRuntime, seeds: range) -> torch.Tensor:
    counts = torch.zeros([VOCABULARY] * TOKENS, dtype=torch.int64)
    for seed in seeds:
        reply = runtime.generate(
            PROMPT, max_new_tokens=TOKENS, seed=seed, temperature=1.0, response_format=schema_format({"enum": VALUES})
        )
        counts[tuple([*reply.token_ids, END, END][:TOKENS])] += 1
    return counts


@pytest.mark.parametrize("tree", GRAMMAR_TREES)
def test_text_follows_the_targets_distribution_within_the_grammar(tree, tiny, monkeypatch):
    monkeypatch.setattr(ngram_lookup, "_LIKELY", 0.0)
    with tiny_runtime(tiny, tree) as runtime:
        assert agreement(counted(runtime, range(TEXTS)), expected()) > 1e-4
        assert tree == "none" or runtime.last_reply.stats.drafted > 0


@pytest.mark.parametrize("tree", ["sequoia by traversal", "adaptive"])
def test_masks_of_a_neighbour_are_found_out(tree, tiny, monkeypatch):
    """The negative control: in every call each node gets the mask of the next one."""
    after = Masks.after

    def of_the_next(masks, reply, paths):
        rows = after(masks, reply, paths)
        return [*rows[1:], *rows[:1]]

    monkeypatch.setattr(Masks, "after", of_the_next)
    with tiny_runtime(tiny, tree) as runtime:
        try:  # at once, or because the text leaves the grammar
            assert shows(lambda seeds: counted(runtime, seeds), lambda counts: agreement(counts, expected()), TEXTS)
        except UsageError as error:
            assert "within its grammar" in str(error)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The target in a place where no draft is found for it."""
    return shutil.copytree(PAIR / "target", tmp_path_factory.mktemp("alone") / "model")


@pytest.fixture
def pair_runtime(alone):
    """Opens the bundled pair for a kind of tree, in float32."""

    def opened(tree: str, **options) -> OffloadRuntime:
        given = {"draft": PAIR / "draft", "device": "cpu", "dtype": "float32", **PAIR_TREES[tree], **options}
        return OffloadRuntime.from_pretrained(alone, **given)

    return opened


def question_ids() -> list[int]:
    return tokenizer("target").apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)


def assert_shape(text: str) -> None:
    """By hand what the schema says."""
    shape = json.loads(text)
    assert list(shape) == ["name", "sides", "open", "tags"]
    assert shape["name"] in SHAPE["properties"]["name"]["enum"]
    assert type(shape["sides"]) is int and 0 <= shape["sides"] <= 12
    assert type(shape["open"]) is bool
    assert len(shape["tags"]) <= 2 and all(type(tag) is str and len(tag) <= 6 for tag in shape["tags"])


@pytest.mark.parametrize("tree", PAIR_TREES)
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_every_reply_follows_its_schema(tree, temperature, pair_runtime, monkeypatch):
    """The text before has another schema's reply, so trees from repeated text propose what this one forbids."""
    monkeypatch.setattr(ngram_lookup, "_LIKELY", 0.0)
    methods = set()
    with pair_runtime(tree) as runtime:
        ids = question_ids()
        earlier = runtime.generate(ids, temperature=0, response_format=schema_format(OTHER)).token_ids
        for seed in range(3):
            prompt, wanted = [*ids, *earlier, *ids], schema_format(SHAPE)
            reply = runtime.generate(prompt, temperature=temperature, seed=seed, response_format=wanted)
            methods |= reply.stats.methods.keys()
            assert reply.finish_reason == "stop" and reply.token_ids[-1] in runtime.end_token_ids
            assert_shape(reply.text)
    assert tree != "repeated text" or temperature == 0 or "ngram" in methods


def plain_greedy(prompt: Sequence[int], ends: frozenset[int]) -> list[int]:
    """One token at a time, by transformers' model and a parser that only goes forwards."""
    made = from_tokenizer(tokenizer("target"))
    matcher = LLMatcher(made, grammar_of(schema_format(SHAPE)))
    ids = [*prompt]
    while True:
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little").astype(bool)
        mask[[*ends]] = matcher.is_accepting()
        with torch.inference_mode():
            logits = model("target")(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.masked_fill(~torch.from_numpy(mask[: len(logits)]), -torch.inf).argmax()))
        if ids[-1] in ends:
            return ids[len(prompt) :]
        assert matcher.consume_token(ids[-1])


@pytest.mark.parametrize("tree", PAIR_TREES)
def test_greedy_text_is_that_of_plain_decoding_under_masks(tree, pair_runtime):
    with pair_runtime(tree) as runtime:
        ids = question_ids()
        reply = runtime.generate(ids, temperature=0, response_format=schema_format(SHAPE))
        assert reply.token_ids == plain_greedy(ids, runtime.end_token_ids)
        assert tree in ("none", "repeated text") or reply.stats.tokens_per_pass > 2, "whole paths are to be covered"


def test_other_rules_give_way_to_the_grammar(pair_runtime):
    """They leave nothing that the grammar allows at the end of the reply; it ends there all the same."""
    ends = {token: float("-inf") for token in tokenizer("target").convert_tokens_to_ids(["<|end|>", "}"])}
    with pair_runtime("sequoia") as runtime:
        for extra in ({"logit_bias": ends}, {"min_new_tokens": 200}):
            reply = runtime.generate(
                QUESTION, max_new_tokens=200, temperature=1, seed=1, response_format=schema_format(SHAPE), **extra
            )
            assert_shape(reply.text)


# Nothing is ever complete that consists of itself.
ENDLESS = {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}


def test_a_reply_that_cannot_go_on_says_so(pair_runtime):
    """The runtime goes on with other texts."""
    with pair_runtime("sequoia") as runtime:
        alone = runtime.generate(QUESTION, temperature=0, max_new_tokens=8)
        with pytest.raises(UsageError, match="within its grammar"):
            runtime.generate(QUESTION, temperature=0, response_format=schema_format(ENDLESS))
        assert runtime.generate(QUESTION, temperature=0, max_new_tokens=8).token_ids == alone.token_ids


@pytest.mark.parametrize("tree", ["none", "sequoia", "adaptive"])
def test_in_shared_passes_it_ends_its_own_text_alone(tree, pair_runtime):
    """The texts beside it, one of them by a schema, are what they are alone."""
    calls = [{"max_new_tokens": 8}, {"response_format": schema_format(SHAPE)}]
    with pair_runtime(tree, parallel=3) as runtime:
        alone = [runtime.generate(QUESTION, temperature=0, **call).token_ids for call in calls]
        with runtime.shared_passes() as passes:
            requests = [*calls, {"response_format": schema_format(ENDLESS)}]
            texts = [passes.add(GenerationRequest.of(QUESTION, temperature=0, **call)) for call in requests]
            while passes.texts:
                passes.step()
    assert [text.reply.token_ids for text in texts[:2]] == alone
    assert texts[2].done and "within its grammar" in str(texts[2].error)


def test_without_a_format_nothing_changes(pair_runtime):
    with pair_runtime("sequoia") as runtime:
        free = runtime.generate(QUESTION, temperature=0, max_new_tokens=20)
        text = runtime.generate(QUESTION, temperature=0, max_new_tokens=20, response_format={"type": "text"})
    assert free.token_ids == text.token_ids
