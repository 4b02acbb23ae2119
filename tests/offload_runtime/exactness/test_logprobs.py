"""Log-probabilities of a reply are those of transformers' logits, whichever tree the tokens came from."""

from dataclasses import replace

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.generation import decode
from tests.offload_runtime.exactness.test_demo_pair import PAIR
from tests.samples.tiny_models import PROMPT, checkpoint, perturbed, reference

NEW_TOKENS, TOP = 24, 4
TREES = {
    "none": {"tree": "none"},
    "sequoia": {"tree": "sequoia", "tree_size": 12, "tree_depth": 4},
    "adaptive": {"tree": "adaptive", "tree_size": 12, "tree_depth": 4},
}
CALLS = {
    "greedy": {"temperature": 0},
    "shaped": {"temperature": 0.7, "top_k": 3, "repetition_penalty": 1.5, "logit_bias": {7: 4.0}, "seed": 1},
}


def written(tree, **arguments):
    """A reply with its log-probabilities, and the entries of its steps."""
    target = checkpoint("llama")
    options = {"device": "cpu", "context_length": 128, **TREES[tree]}
    with OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **options) as runtime:
        steps = [*runtime.stream(PROMPT, max_new_tokens=NEW_TOKENS, **arguments)]
        return runtime.last_reply, steps


def expected(token_ids):
    """log-probabilities [tokens, V], by one pass of transformers' model over the whole text."""
    with torch.inference_mode():
        logits = reference(checkpoint("llama"))(torch.tensor([[*PROMPT, *token_ids]])).logits[0]
    return logits[len(PROMPT) - 1 : -1].float().log_softmax(-1)


def largest_error(reply):
    """Of all log-probabilities in a reply, given as `top` or the token's own."""
    expectations = expected(reply.token_ids)
    return max(
        abs(row[token].item() - logprob)
        for row, entry in zip(expectations, reply.logprobs)
        for token, logprob in ((entry.token_id, entry.logprob), *entry.top)
    )


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("call", CALLS)
def test_they_are_those_of_the_model_itself(tree, call):
    reply, steps = written(tree, top_logprobs=TOP, **CALLS[call])
    assert [entry.token_id for entry in reply.logprobs] == reply.token_ids
    assert [[entry.token_id for entry in step.logprobs] for step in steps] == [step.token_ids for step in steps]
    assert largest_error(reply) < 1e-4
    likeliest = expected(reply.token_ids).topk(TOP).values
    named = torch.tensor([[logprob for _, logprob in entry.top] for entry in reply.logprobs])
    assert torch.allclose(named, likeliest, atol=1e-4)
    assert tree == "none" or reply.stats.tokens_per_pass > 1.2, "whole paths are to be covered"


def test_those_of_a_neighbour_are_found_out(monkeypatch):
    """The negative control: every node takes the place of the one before it on the path."""
    read = decode.token_logprobs

    def shifted(logits, path, *rest):
        return read(logits, replace(path, path=[0, *path.path][: len(path.path)]), *rest)

    monkeypatch.setattr(decode, "token_logprobs", shifted)
    assert largest_error(written("sequoia", top_logprobs=TOP, temperature=0)[0]) > 0.01


def test_none_are_made_unless_asked_for(monkeypatch):
    monkeypatch.setattr(decode, "token_logprobs", None)
    assert written("sequoia", temperature=0)[0].logprobs == []


def test_zero_names_the_token_alone():
    reply, _ = written("sequoia", top_logprobs=0, temperature=0)
    assert len(reply.logprobs) == NEW_TOKENS and not any(entry.top for entry in reply.logprobs)


def test_a_stop_string_cuts_them_with_the_tokens():
    with OffloadRuntime.from_pretrained(PAIR / "target", PAIR / "draft", device="cpu") as runtime:
        whole = runtime.generate("def area", max_new_tokens=40, temperature=0).text
        stop = whole[len(whole) // 2 :][:4]
        reply = runtime.generate("def area", max_new_tokens=40, temperature=0, stop=stop, top_logprobs=0)
    assert reply.finish_reason == "stop" and len(reply.token_ids) < 40
    assert [entry.token_id for entry in reply.logprobs] == reply.token_ids


@pytest.mark.parametrize("wrong", [-1, 21, True, 1.0, "5"])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(UsageError, match="from 0 to 20"):
        written("none", top_logprobs=wrong)
