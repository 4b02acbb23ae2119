"""What a model's generation_config.json asks for is what the text shows, whatever tree drafts it."""

import json
import shutil
from math import inf, nan

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from offload_runtime.errors import ModelFilesError, PromptError, UsageError
from offload_runtime.generation.defaults import read_generation_defaults
from sequoia_tree.shaping.contexts import Contexts, Text
from tests.samples.tiny_models import PROMPT as ONCE
from tests.samples.tiny_models import checkpoint, greedy, perturbed
from tests.samples.tokenizer_samples import byte_level

PROMPT = ONCE * 2  # so that it repeats itself
NEW_TOKENS = 24
TARGET = checkpoint("llama", vocab_size=96)
TREE = {"device": "cpu", "context_length": 128, "tree_size": 12, "tree_depth": 4}
WAYS = {  # draft and tree; without a draft what the text said before is the draft
    "static": (perturbed(TARGET, 0.02), "sequoia"),
    "adaptive": (perturbed(TARGET, 0.02), "adaptive"),
    "repeated text": ("none", "auto"),
}


@pytest.fixture(scope="module")
def base():
    return greedy(TARGET, PROMPT, NEW_TOKENS)


def with_config(directory, **fields):
    copy = shutil.copytree(TARGET, directory / "model")
    (copy / "generation_config.json").write_text(json.dumps(fields))
    return copy


def runtime_of(model, way="static"):
    draft, tree = WAYS[way]
    return OffloadRuntime.from_pretrained(model, draft, tree=tree, **TREE)


def fields_of(name, base):
    return {
        "suppress_tokens": [base[0], base[3], 1000],
        "begin_suppress_tokens": [base[0]],
        "bad_words_ids": [[base[2]], [base[4], base[5]]],
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 1,
        "sequence_bias": [[[base[0]], -20.0], [[base[1], base[2]], -20.0], [[base[1], 9], 20.0]],
        "forced_eos_token_id": 9,
        "min_new_tokens": 10,
        "min_length": len(PROMPT) + 7,
        "exponential_decay_length_penalty": [3, 1.6],
        "repetition_penalty": 1.4,
        "encoder_repetition_penalty": 1.5,
        "remove_invalid_values": True,
    }[name]


# Each on one kind of tree here, and on all of them in test_shaping.py; what reaches along paths on every kind.
ONE_BY_ONE = [
    ("suppress_tokens", "static"),
    ("begin_suppress_tokens", "static"),
    ("bad_words_ids", "adaptive"),
    ("no_repeat_ngram_size", "static"),
    ("no_repeat_ngram_size", "adaptive"),
    ("no_repeat_ngram_size", "repeated text"),
    ("encoder_no_repeat_ngram_size", "adaptive"),
    ("sequence_bias", "static"),
    ("sequence_bias", "repeated text"),
    ("forced_eos_token_id", "adaptive"),
    ("forced_eos_token_id", "repeated text"),
    ("encoder_repetition_penalty", "static"),
]


@pytest.mark.parametrize("name, way", ONE_BY_ONE)
def test_greedy_text_equals_generate(name, way, base, tmp_path):
    model = with_config(tmp_path, **{name: fields_of(name, base)})
    expected = greedy(model, PROMPT, NEW_TOKENS)
    assert expected != greedy(TARGET, PROMPT, NEW_TOKENS), "the field is to change the text"
    with runtime_of(model, way) as runtime:
        for _ in range(2):  # the second time with what was learnt
            reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS)
            assert reply.token_ids == expected
    assert way == "repeated text" or reply.stats.tokens_per_pass > 1.2, "trees are to be accepted"


@pytest.mark.parametrize("name", ["min_new_tokens", "min_length", "exponential_decay_length_penalty"])
@pytest.mark.parametrize("way", WAYS)
def test_ends_come_when_they_may(name, way, base, tmp_path):
    """Two of the first tokens end the text, if no field keeps them away."""
    grows = name == "exponential_decay_length_penalty"
    ends = [95, 94] if grows else [base[2], base[4], 95]
    model = with_config(tmp_path, **{name: fields_of(name, base)}, eos_token_id=ends)
    expected = greedy(model, PROMPT, NEW_TOKENS)
    assert (len(expected) < NEW_TOKENS) if grows else (len(expected) > 3), "the field is to do something"
    with runtime_of(model, way) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS).token_ids == expected


@pytest.mark.parametrize("way", WAYS)
def test_all_fields_together(way, base, tmp_path):
    names = {
        *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "forced_eos_token_id"),
        *("min_new_tokens", "exponential_decay_length_penalty", "repetition_penalty", "encoder_repetition_penalty"),
        *("remove_invalid_values",),
    }
    fields = {name: fields_of(name, base) for name in names} | {"no_repeat_ngram_size": 3, "eos_token_id": [base[2]]}
    model = with_config(tmp_path, **fields)
    with runtime_of(model, way) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS)
    assert reply.token_ids == greedy(model, PROMPT, NEW_TOKENS)


def test_rules_that_see_the_text_alone_are_found_out(base, tmp_path, monkeypatch):
    """The negative control: every node shaped by the text so far, not by its path."""

    def without_paths(text, ancestors, tokens, depth):
        nodes = len(ancestors)
        return Contexts(text, tokens.new_empty(nodes, 0), tokens.new_zeros(nodes))

    model = with_config(tmp_path, no_repeat_ngram_size=2)
    monkeypatch.setattr(Text, "at", without_paths)
    with runtime_of(model, "static") as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS).token_ids != greedy(model, PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("inner", [False, True])
def test_older_models_have_it_in_config_json(inner, base, tmp_path):
    model = shutil.copytree(TARGET, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    fields = {"suppress_tokens": [base[0]], "repetition_penalty": 1.8, "max_length": 20, "top_k": None}
    (model / "config.json").write_text(json.dumps(config | ({"text_config": fields} if inner else fields)))
    (model / "generation_config.json").unlink(missing_ok=True)
    defaults = read_generation_defaults(model)
    assert (defaults.sampling.repetition_penalty, defaults.token_rules.suppress_tokens) == (1.8, (base[0],))
    assert (defaults.end_token_ids, defaults.max_length, defaults.sampling.temperature) == (None, None, 0)
    if not inner:  # transformers keeps no such part of a text model's config
        with runtime_of(model) as runtime:
            reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS)
        assert reply.token_ids == greedy(model, PROMPT, NEW_TOKENS) != base
    (model / "generation_config.json").write_text("{}")
    assert read_generation_defaults(model).sampling.repetition_penalty == 1


@pytest.mark.parametrize("fields, count", [({"max_new_tokens": 5}, 5), ({"max_length": len(PROMPT) + 3}, 3)])
def test_the_text_is_as_long_as_the_file_says(fields, count, base, tmp_path):
    with runtime_of(with_config(tmp_path, **fields, forced_eos_token_id=9)) as runtime:
        reply = runtime.generate(PROMPT)
        assert reply.token_ids == [*base[: count - 1], 9] and reply.finish_reason == "length"
        assert runtime.generate(PROMPT, max_new_tokens=7).token_ids == [*base[:6], 9], "a call goes before the file"
        if "max_length" in fields:
            with pytest.raises(PromptError, match=f"max_length = {fields['max_length']}"):
                runtime.generate(PROMPT * 2)


def test_what_cannot_be_applied_is_named_at_the_start(tmp_path):
    fields = {"num_beams": 4, "guidance_scale": 1.5, "watermarking_config": {"bias": 2.0}, "dola_layers": "high"}
    model = with_config(tmp_path, **fields, early_stopping=True, num_return_sequences=1)
    with pytest.warns(UserWarning, match=r"num_beams=4, guidance_scale=1\.5, watermarking_config=.*dola_layers='high'"):
        OffloadRuntime.from_pretrained(model, "none", device="cpu").close()


@pytest.mark.filterwarnings("error")
def test_what_changes_no_text_is_not_named(tmp_path):
    fields = {
        "num_beams": 1,
        "length_penalty": 2.0,
        "renormalize_logits": True,
        "guidance_scale": 1.0,
        "max_time": None,
    }
    OffloadRuntime.from_pretrained(with_config(tmp_path, **fields), "none", device="cpu").close()


def test_the_chat_names_what_is_not_applied(tmp_path, capsys):
    model = shutil.copytree(checkpoint("llama", vocab_size=320), tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"num_beams": 3}))
    byte_level().save_pretrained(model)
    assert main(["-m", str(model), "-d", "none", "--device", "cpu", "-p", "hi", "--raw", "--max-new-tokens", "2"]) == 0
    assert "num_beams=3" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("way", WAYS)
def test_the_smallest_temperature_is_as_none(way, base):
    with runtime_of(TARGET, way) as runtime:
        for temperature in (1e-38, 1e-12):
            reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=temperature)
            assert reply.token_ids == base


def test_what_a_call_asks_for(base):
    """On top of a model whose file says nothing."""
    with runtime_of(TARGET) as runtime:

        def written(**arguments):
            return runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, **{"temperature": 0, **arguments}).token_ids

        bias = greedy(TARGET, PROMPT, NEW_TOKENS, sequence_bias=[[[base[0]], -30.0]])
        assert written(logit_bias={base[0]: -30.0}) == bias != base
        assert written(no_repeat_ngram_size=2.0) == greedy(TARGET, PROMPT, NEW_TOKENS, no_repeat_ngram_size=2) != base
        assert base[0] not in written(logit_bias={base[0]: -inf})
        assert len(set(written(presence_penalty=1000.0))) == NEW_TOKENS, "no token comes twice"
        assert written() == base
        for wrong in (
            *({"repetition_penalty": 1e-38}, {"presence_penalty": 1e38}, {"temperature": 1e38}, {"rules": ()}),
            *({"logit_bias": {96: 1.0}}, {"logit_bias": {1: nan}}, {"logit_bias": [1]}, {"warmth": 1}),
            {"dry_sequence_breakers": [""]},
        ):
            with pytest.raises(UsageError, match=next(iter(wrong))):
                written(**wrong)


@pytest.mark.parametrize(
    "field, value",
    [
        ("top_k", 2.5),
        ("top_k", "many"),
        ("temperature", True),
        ("suppress_tokens", "abc"),
        ("suppress_tokens", [1.5]),
        ("bad_words_ids", [1, 2]),
        ("sequence_bias", {"1": 2.0}),
        ("sequence_bias", [[[1], float("nan")]]),
        ("sequence_bias", [[[1], 1e39]]),
        ("sequence_bias", [[[1]]]),
        ("forced_bos_token_id", [1]),
        ("forced_eos_token_id", "x"),
        ("exponential_decay_length_penalty", [1]),
        ("exponential_decay_length_penalty", [1, 0]),
        ("remove_invalid_values", 1),
        ("max_new_tokens", 0),
        ("max_length", "long"),
        ("stop_strings", [""]),
        ("min_new_tokens", 1e400),
        ("eos_token_id", "x"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_before_loading(field, value, tmp_path):
    model = with_config(tmp_path, **{"do_sample": True, field: value})
    with pytest.raises(ModelFilesError, match=rf"generation_config\.json: {field} must be"):
        read_generation_defaults(model)


def test_values_that_transformers_takes_for_off(tmp_path):
    fields = {"top_p": 1.5, "typical_p": 2, "epsilon_cutoff": 3, "eta_cutoff": -1, "no_repeat_ngram_size": -2}
    sampling = read_generation_defaults(with_config(tmp_path, do_sample=True, **fields)).sampling
    assert (sampling.top_p, sampling.typical_p, sampling.epsilon_cutoff, sampling.eta_cutoff) == (1, 1, 0, 0)
    assert sampling.no_repeat_ngram_size == 0
    assert read_generation_defaults(with_config(tmp_path / "vLLM's", do_sample=True, top_k=-1)).sampling.top_k == 0


def test_tokens_may_be_written_as_whole_floats(base, tmp_path):
    fields = {"suppress_tokens": [float(base[0])], "begin_suppress_tokens": [7.0], "eos_token_id": [float(base[4]), 95]}
    model = with_config(tmp_path, **fields, forced_eos_token_id=9.0)
    defaults = read_generation_defaults(model)
    assert defaults.end_token_ids == {base[4], 95}
    rules = defaults.token_rules
    written = (*rules.suppress_tokens, *rules.begin_suppress_tokens, *rules.forced_eos_token_id)
    assert written == (base[0], 7, 9) and {type(token) for token in written} == {int}
    assert read_generation_defaults(with_config(tmp_path / "one", eos_token_id=2.0)).end_token_ids == {2}
