"""Every node of a tree is shaped as transformers' own processors shape a text that ends with the node's path."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree import Tree
from sequoia_tree.shaping.contexts import Text
from sequoia_tree.shaping.order import Bounds
from sequoia_tree.verification.sampling import log_probs, processed
from tests.generation_configs import sampling_of, scores_by_transformers

VOCABULARY = 12
PROMPT = [4, 7, 1, 7, 4, 7, 9, 2, 0, 7, 4]
TEXT = [*PROMPT, 7, 1, 11, 4]
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7, 8, 10, 12, 3]
TOKENS = [4, 7, 1, 4, 9, 1, 11, 2, 7, 7, 0, 4, 3, 7, 4]  # the path 1, 4, 7, 10, 12, 13 is six levels deep
BOUNDS = Bounds(PROMPT, frozenset({3, 5}), 19, VOCABULARY, torch.device("cpu"))

FIELDS: dict[str, dict[str, Any]] = {
    "suppress": {"suppress_tokens": [2, 7, -1, 99]},
    "suppress at the beginning": {"begin_suppress_tokens": [2, 7]},
    "bad words": {"bad_words_ids": [[7, 1], [4, 7, 9], [11], [3], [4, 7, 1, 11, 4, 7]]},
    "sequence bias": {"sequence_bias": [[[7], 1.5], [[7, 1], -2.5], [[4, 1], 0.75], [[9, 4, 7, 1], 9.0]]},
    "min new tokens": {"min_new_tokens": 6},
    "min length": {"min_length": 17},
    "min length is outdone": {"min_length": 25, "min_new_tokens": 5},
    "forced end": {"forced_eos_token_id": 8},
    "forced ends": {"forced_eos_token_id": [8, 3]},
    "no repeated bigram": {"no_repeat_ngram_size": 2},
    "no repeated trigram": {"no_repeat_ngram_size": 3},
    "no repeated 5-gram": {"no_repeat_ngram_size": 5},
    "no repeated ngram of a prompt": {"encoder_no_repeat_ngram_size": 2},
    "repetition": {"repetition_penalty": 1.7},
    "prompt bonus": {"encoder_repetition_penalty": 1.4},
    "end grows likelier": {"exponential_decay_length_penalty": [5, 1.3]},
    "end grows less likely": {"exponential_decay_length_penalty": [2, 0.7]},
    "finite": {"remove_invalid_values": True, "bad_words_ids": [[7]]},
    "top h": {"top_h": 0.6},
    "typical": {"typical_p": 0.6},
    "epsilon": {"epsilon_cutoff": 0.08},
    "eta": {"eta_cutoff": 0.2},
    "all of sampling": {"temperature": 0.8, "top_h": 0.95, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    "cut-offs": {"temperature": 1.5, "top_p": 0.95, "epsilon_cutoff": 0.02, "eta_cutoff": 0.1},
    "whole floats": {"top_k": 5.0, "no_repeat_ngram_size": 2.0},
    "all rules": {
        "sequence_bias": [[[7, 1], 2.0], [[9], -1.0]],
        "encoder_repetition_penalty": 1.2,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 4,
        "bad_words_ids": [[4, 4]],
        "min_new_tokens": 7,
        "forced_eos_token_id": 3,
        "exponential_decay_length_penalty": [6, 1.1],
        "suppress_tokens": [6],
        "begin_suppress_tokens": [0],
        "temperature": 0.7,
        "top_p": 0.97,
        "typical_p": 0.95,
    },
}
TYPES_OF_TRANSFORMERS = {"whole floats": {"top_k": 5, "no_repeat_ngram_size": 2}}
# Fields that no path can change, or not here: they depend on the prompt or the logits alone.
SAME_EVERYWHERE = {
    *("suppress", "prompt bonus", "finite"),
    *("top h", "typical", "epsilon", "eta", "all of sampling", "cut-offs"),
}


def tree() -> DraftTree:
    none = np.full(len(PARENTS), -1)
    return DraftTree(Tree(PARENTS), TOKENS, len(PARENTS), none, None, none)


def text_of(name: str) -> list[int]:
    return PROMPT if name == "suppress at the beginning" else TEXT


def texts(begin: list[int]) -> list[list[int]]:
    """The whole text after each node."""
    drawn = tree()
    return [[*begin, *(TOKENS[node] for node in drawn.tree.path(node))] for node in range(len(PARENTS))]


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.randn(len(PARENTS), VOCABULARY, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("name", FIELDS)
def test_every_node_is_shaped_by_its_own_path(name):
    fields = FIELDS[name]
    sampling = sampling_of(fields, BOUNDS)
    contexts = tree().contexts(Text.of(text_of(name), torch.device("cpu")), torch.tensor(TOKENS))
    fields = TYPES_OF_TRANSFORMERS.get(name, fields)
    expected = scores_by_transformers(fields, BOUNDS, texts(text_of(name)), logits())
    distribution = log_probs(logits(), sampling, contexts)
    wanted = expected.log_softmax(-1)
    wanted = wanted.masked_fill(wanted < -1e30, -torch.inf)  # of finite scores instead of infinite ones
    torch.testing.assert_close(distribution, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits()), "the field is to do something here"
    without_paths = replace(contexts, paths=torch.full_like(contexts.paths, -1), depths=0 * contexts.depths)
    same = torch.allclose(log_probs(logits(), sampling, without_paths), distribution)
    assert same == (name in SAME_EVERYWHERE), "else a rule that looked at the text alone would pass"


@pytest.mark.parametrize("name", FIELDS)
def test_greedy_decoding_takes_the_argmax_of_what_rules_leave(name):
    fields = {key: value for key, value in FIELDS[name].items() if key not in ("temperature", "top_p", "typical_p")}
    contexts = tree().contexts(Text.of(text_of(name), torch.device("cpu")), torch.tensor(TOKENS))
    fields = {**TYPES_OF_TRANSFORMERS.get(name, fields), "do_sample": False}
    expected = scores_by_transformers(fields, BOUNDS, texts(text_of(name)), logits())
    torch.testing.assert_close(processed(logits(), sampling_of(fields, BOUNDS), contexts), expected)


def test_some_nodes_of_a_tree_are_shaped_alike():
    sampling = sampling_of(FIELDS["all rules"], BOUNDS)
    contexts = tree().contexts(Text.of(TEXT, torch.device("cpu")), torch.tensor(TOKENS))
    nodes = torch.tensor([12, 0, 5])
    some = log_probs(logits()[nodes], sampling, contexts[nodes])
    torch.testing.assert_close(some, log_probs(logits(), sampling, contexts)[nodes])


@pytest.mark.parametrize("prompt", [[7], [7, 4]])
def test_the_first_tokens_of_short_prompts(prompt):
    """Where n-grams, sequences and the forced beginning reach before the text."""
    fields = {
        "forced_bos_token_id": 6,
        "begin_suppress_tokens": [2, 7],
        "no_repeat_ngram_size": 4,
        "bad_words_ids": [[1, 2, 7, 4, 9]],
        "min_length": 2,
    }
    bounds = replace(BOUNDS, prompt=prompt)
    parents, tokens = [-1, 0, 1, 2, 3, 4, 5], [prompt[-1], 4, 7, 4, 7, 4, 7]
    none = np.full(len(parents), -1)
    drawn = DraftTree(Tree(parents), tokens, len(parents), none, None, none)
    contexts = drawn.contexts(Text.of(prompt, torch.device("cpu")), torch.tensor(tokens))
    written = [[*prompt, *tokens[1 : node + 1]] for node in range(len(parents))]
    expected = scores_by_transformers(fields, bounds, written, logits()[: len(parents)])
    distribution = log_probs(logits()[: len(parents)], sampling_of(fields, bounds), contexts)
    torch.testing.assert_close(distribution, expected.log_softmax(-1))


def test_a_text_without_rules_needs_no_contexts():
    values = logits()
    assert processed(values, sampling_of({"top_p": 0.9}, BOUNDS)) is values
    with pytest.raises(AssertionError):
        processed(values, sampling_of({"repetition_penalty": 1.5}, BOUNDS))


def test_rules_that_leave_nothing_give_way_when_sampling():
    """`generate` fails there with a sampling error; greedy it takes token 0."""
    sampling = sampling_of({"suppress_tokens": list(range(VOCABULARY))}, BOUNDS)
    contexts = Text.of(TEXT, torch.device("cpu")).at_root()
    torch.testing.assert_close(log_probs(logits()[:1], sampling, contexts), logits()[:1].log_softmax(-1))
    assert processed(logits()[:1], sampling, contexts).argmax() == 0


@pytest.mark.parametrize("fields", [{"forced_eos_token_id": 12}, {"bad_words_ids": [[1, 12]]}])
def test_tokens_outside_the_vocabulary_are_named(fields):
    with pytest.raises(Exception, match=f"{next(iter(fields))} names token 12, outside the vocabulary"):
        sampling_of(fields, BOUNDS)
