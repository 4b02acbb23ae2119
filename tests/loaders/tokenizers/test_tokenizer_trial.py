"""Tokenizer files whose rules run for ever, fill the memory or crash the library are refused before their first use."""

import base64
import json
import os
import struct
from pathlib import Path

import pytest

from loaders.checkpoint.model_source import load_tokenizer
from loaders.errors import ModelFilesError
from loaders.tokenizers import trial
from offload_runtime.options.run_options import DEMO_TARGET
from offload_runtime.text.prompt import encode_prompt

pytestmark = pytest.mark.slow

DEMO = json.loads((DEMO_TARGET / "tokenizer.json").read_text())


def split(pattern: str) -> dict[str, object]:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [rule, DEMO["pre_tokenizer"]]}}


def replaced(pattern: dict[str, str], content: str, times: int = 1) -> dict[str, object]:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [step] * times}}


def table(*layers: int, text: bytes = b"x\0") -> dict[str, object]:
    content = struct.pack(f"<I{len(layers)}I", 4 * len(layers), *layers) + text
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}}


HOSTILE = {
    "nested repeats": split("(a+)+$"),
    "nested repeats of a letter of its own": split("(ж+)+$"),
    "alternatives alike": split("(a|a)*$"),
    "three repeats of anything": split(r"(.*)(.*)(.*)(.*)\1z"),
    "a replacement that grows": replaced({"String": "a"}, "a" * 10, 12),
    "a pattern that explodes": replaced({"Regex": "(a+)+$"}, "b"),
    "an empty pattern": replaced({"String": ""}, "x"),
    "a table that leads out of itself": table(0x7FFFFFFF),
    "no table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a template of tokens that are none": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "none", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that run for ever are given up sooner."""
    monkeypatch.setattr(trial, "CPU_SECONDS", 2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", HOSTILE)
def test_rules_that_explode_are_refused(case, directory):
    (directory / "tokenizer.json").write_text(json.dumps({**DEMO, **HOSTILE[case]}))
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json: (the tokenizer fails|its table)") as caught:
        load_tokenizer(directory)
    assert len(str(caught.value)) < 800
    assert not (directory.parent / "cache").exists()  # what failed is not remembered as tried


def test_what_passed_is_tried_once(directory, monkeypatch):
    (directory / "tokenizer.json").write_text(json.dumps(DEMO))
    trial._known.clear()
    assert load_tokenizer(directory).encode("Hello")
    trial._known.clear()  # as in the next start
    monkeypatch.setattr(trial, "_fault", lambda file: pytest.fail("tried again"))
    assert load_tokenizer(directory).encode("Hello")
    with pytest.raises(pytest.fail.Exception):
        (directory / "tokenizer.json").write_text(json.dumps({**DEMO, **split("a|b")}))
        load_tokenizer(directory)


def test_where_no_process_can_be_started_it_is_used_untried(directory, monkeypatch):
    (directory / "tokenizer.json").write_text(json.dumps({**DEMO, **split("b|c")}))
    monkeypatch.setattr(trial.sys, "executable", "/nowhere/python")
    assert load_tokenizer(directory).encode("Hello")


@pytest.mark.parametrize("name", ["special_tokens_map.json", "merges.txt", "chat_template.jinja", "tokenizer.json"])
def test_no_file_but_a_regular_one_of_bearable_size_is_read(name, directory):
    (directory / "tokenizer.json").write_text(json.dumps(DEMO))
    (directory / name).unlink(missing_ok=True)
    (directory / "tokenizer.model").write_text("")
    os.mkfifo(directory / name)
    with pytest.raises(ModelFilesError, match="not a regular file"):
        load_tokenizer(directory)
    (directory / name).unlink()
    with (directory / name).open("wb") as stream:
        stream.truncate(trial.MOST_BYTES + 1)  # no block of it is on disk
    with pytest.raises(ModelFilesError, match="larger than"):
        load_tokenizer(directory)


@pytest.mark.usefixtures("impatient")
def test_the_pattern_of_a_tekken_file_is_tried(directory):
    (directory / "tekken.json").write_text(json.dumps({"config": {"pattern": "(a+)+$"}, "vocab": []}))
    with pytest.raises(ModelFilesError, match=r"tekken\.json: the tokenizer fails"):
        trial.check_tokenizer_files(directory)


def test_a_panic_while_a_prompt_is_encoded_is_an_error_of_ours(directory):
    """Past the trial, of a text nobody thought of."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps({**DEMO, **split("(ж+)+$")}))

    def tokenizer(text: str) -> object:
        return backend.encode(text)

    with pytest.raises(ModelFilesError, match="the tokenizer fails"):
        encode_prompt("ж" * 40 + "!", lambda: tokenizer)


@pytest.mark.parametrize("value", [[512], "long", {"a": 1}])
def test_values_of_another_type_are_told_before_their_first_use(value, directory):
    (directory / "tokenizer.json").write_text(json.dumps(DEMO))
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": value}))
    with pytest.raises(ModelFilesError, match=r"the tokenizer cannot be (used|loaded)"):
        load_tokenizer(directory)
