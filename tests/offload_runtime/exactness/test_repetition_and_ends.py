"""A text ends where the target alone would end it, wherever in a tree that falls; and what a call may ask for."""

import json
import shutil

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.errors import ModelFilesError, PromptError, UsageError
from offload_runtime.text.detokenize import REPLACEMENT
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed
from tests.samples.tokenizer_samples import byte_level

OPTIONS = {"device": "cpu", "context_length": 96, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
NEW_TOKENS = 24
VOCABULARY = 320  # of the tokenizer


@pytest.fixture(scope="module")
def target():
    """With a tokenizer that knows chats."""
    directory = checkpoint("llama", vocab_size=VOCABULARY)
    byte_level().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def runtime(target):
    """A perfect draft: ends fall into accepted paths."""
    with OffloadRuntime.from_pretrained(target, target, **OPTIONS) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def full(target):
    return greedy(target, PROMPT, NEW_TOKENS)


def write(runtime, prompt=PROMPT, **arguments):
    return runtime.generate(prompt, **{"max_new_tokens": NEW_TOKENS, "temperature": 0, **arguments})


def decoded(runtime, tokens):
    return runtime.tokenizer.decode(tokens, skip_special_tokens=True)


def with_file(target, directory, name, content):
    copy = shutil.copytree(target, directory / "model")
    (copy / name).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 6, 9])
def test_an_end_token_ends_the_text_there(place, target, full, tmp_path):
    ends = [full[place], 319]
    copy = with_file(target, tmp_path, "generation_config.json", {"eos_token_id": ends})
    expected = greedy(copy, PROMPT, NEW_TOKENS)
    assert len(expected) == full.index(full[place]) + 1
    with OffloadRuntime.from_pretrained(copy, target, **OPTIONS) as runtime:
        assert runtime.end_token_ids == set(ends)
        for _ in range(2):
            reply = write(runtime)
            assert (reply.token_ids, reply.finish_reason) == (expected, "stop")


@pytest.mark.parametrize("stated", [None, {"eos_token_id": None}, {"eos_token_id": 7}, {"eos_token_id": [3, 9]}])
def test_end_tokens_are_those_generate_knows(stated, target, full, tmp_path):
    config = json.loads((target / "config.json").read_text()) | {"eos_token_id": full[5]}
    copy = with_file(target, tmp_path, "config.json", config)
    if stated is None:
        (copy / "generation_config.json").unlink()
    else:
        (copy / "generation_config.json").write_text(json.dumps(stated))
    with OffloadRuntime.from_pretrained(copy, "none", **OPTIONS) as runtime:
        assert write(runtime).token_ids == greedy(copy, PROMPT, NEW_TOKENS)


def test_end_tokens_of_the_call(runtime, full):
    reply = write(runtime, end_token_ids=[full[6]])
    assert (reply.token_ids, reply.finish_reason) == (full[: full.index(full[6]) + 1], "stop")


@pytest.mark.parametrize("count", range(1, 11))
def test_the_limit_falls_anywhere_in_a_path(count, runtime, full):
    reply = write(runtime, max_new_tokens=count)
    assert (reply.token_ids, reply.finish_reason) == (full[:count], "length")
    assert write(runtime).token_ids == full


def test_an_end_token_at_the_limit_is_an_end(runtime, full):
    first_of_its_kind = next(i for i in range(2, NEW_TOKENS) if full[i] not in full[:i])
    reply = write(runtime, max_new_tokens=first_of_its_kind + 1, end_token_ids=[full[first_of_its_kind]])
    assert (reply.token_ids, reply.finish_reason) == (full[: first_of_its_kind + 1], "stop")


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8])
def test_the_context_ends_inside_a_tree(room, target, full):
    with OffloadRuntime.from_pretrained(target, target, **{**OPTIONS, "context_length": len(PROMPT) + room}) as runtime:
        reply = write(runtime, max_new_tokens=None)
        assert (reply.token_ids, reply.finish_reason) == (full[:room], "length")
        assert write(runtime, [*PROMPT, *full[: room - 1]], max_new_tokens=None).token_ids == full[room - 1 : room]


@pytest.mark.parametrize("tree", ["sequoia", "none"])
def test_the_last_learned_position_ends_inside_a_tree(tree):
    """A table of positions has no row for the nodes that lie behind its end."""
    target = checkpoint("gpt2", n_positions=20, n_embd=32, n_layer=2, n_head=4)
    options = {**OPTIONS, "context_length": 20, "tree": tree}
    with OffloadRuntime.from_pretrained(target, target, **options) as runtime:
        reply = write(runtime, max_new_tokens=None)
    assert reply.token_ids == greedy(target, PROMPT, 20 - len(PROMPT))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
@pytest.mark.parametrize("tree", ["sequoia", "chain", "none"])
def test_repetition_penalty_equals_that_of_generate(tree, penalty):
    target = checkpoint("qwen2")
    expected = greedy(target, PROMPT, NEW_TOKENS, repetition_penalty=penalty)
    assert expected != greedy(target, PROMPT, NEW_TOKENS)
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **{**OPTIONS, "tree": tree}) as runtime:
        reply = write(runtime, repetition_penalty=penalty)
        assert reply.token_ids == expected
        assert (reply.stats.tokens_per_pass > 1.2) == (tree != "none")


def test_a_seed_repeats_a_text(runtime):
    first, again, other = (write(runtime, temperature=1.0, seed=seed) for seed in (5, 5, 6))
    assert first.token_ids == again.token_ids != other.token_ids and first.seed == 5
    fresh, another = (write(runtime, temperature=1.0) for _ in range(2))
    assert fresh.token_ids != another.token_ids and fresh.seed != another.seed
    assert write(runtime, temperature=1.0, seed=fresh.seed).token_ids == fresh.token_ids


@pytest.mark.parametrize("begin", range(0, 12, 2))
@pytest.mark.parametrize("length", [1, 3])
def test_text_ends_before_a_stop_string(begin, length, runtime, full):
    whole = write(runtime).text
    stop = whole[begin : begin + length]
    reply = write(runtime, stop=["never in it", stop])
    assert reply.text == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop"
    count = len(reply.token_ids)
    assert reply.token_ids == full[:count]
    assert REPLACEMENT in stop or stop not in decoded(runtime, full[: count - 1]), "one token less would have done"
    assert write(runtime).text == whole


def test_steps_add_up_to_the_reply(runtime):
    steps = list(runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0))
    reply = runtime.last_reply
    assert [token for step in steps for token in step.token_ids] == reply.token_ids
    assert "".join(step.text for step in steps) == reply.text == decoded(runtime, reply.token_ids)
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + ["length"]
    assert sum(step.drafted for step in steps) == reply.stats.drafted == 11 * len(steps)
    assert reply.stats.passes == len(steps)


def test_kinds_of_prompts(runtime, target):
    """Text as the tokenizer encodes it, token ids as they are, messages through the chat template."""
    text, tokenizer, chat = "hello world", runtime.tokenizer, [{"role": "user", "content": "hello world"}]
    assert write(runtime, text).token_ids == greedy(target, tokenizer(text).input_ids, NEW_TOKENS)
    assert write(runtime, list(PROMPT)).token_ids == write(runtime, PROMPT).token_ids
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert write(runtime, chat).token_ids == greedy(target, ids, NEW_TOKENS, eos_token_id=tokenizer.eos_token_id)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "empty"),
        ("", "empty"),
        ([1] * 96, "the context holds 96"),
        ([1] * 300, "has 300 tokens"),
        ([0, VOCABULARY], "outside the vocabulary"),
        ([0, -1], "outside the vocabulary"),
        ([1, "a"], "mixes other things"),
        ([1.5], "mixes other things"),
        ([True], "mixes other things"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be(prompt, message, runtime):
    with pytest.raises(PromptError, match=message):
        runtime.stream(prompt)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 2},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"seed": 2**64},
        {"seed": "x"},
        {"stop": ""},
        {"stop": ["a", ""]},
    ],
    ids=str,
)
def test_values_that_cannot_be(arguments, runtime, full):
    with pytest.raises(UsageError, match=next(iter(arguments)).partition("_")[0] + "|must be numbers"):
        runtime.stream(PROMPT, **arguments)
    assert write(runtime).token_ids == full


def test_what_needs_a_tokenizer_says_so():
    with OffloadRuntime.from_pretrained(checkpoint("llama"), "none", **OPTIONS) as runtime:
        with pytest.raises(ModelFilesError, match="tokenizer"):
            runtime.stream("hello")
        with pytest.raises(UsageError, match="tokenizer"):
            runtime.stream(PROMPT, stop="a")
        reply = write(runtime)
        assert reply.token_ids and reply.text == ""
