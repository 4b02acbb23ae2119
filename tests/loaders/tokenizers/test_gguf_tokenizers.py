"""Tokenizers from GGUF files: text is split by the rule that the file names, special tokens stay whole.

The references: tokenizers with the published steps for byte-level vocabularies, and for SentencePiece's llama.cpp's
algorithm, written out.
"""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

from loaders.checkpoint.model_source import load_tokenizer
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.tokenizers.gguf_byte_level import byte_level_tokenizer
from offload_runtime.options.command_line import run_command
from tests.samples.gguf_samples import gguf, np

# As the published tokenizer.json files have them.
PUBLISHED = {
    "smollm": [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)],
    "gpt-2": [ByteLevel(add_prefix_space=False)],
    "deepseek-coder": [
        Split(Regex("[\r\n]"), "isolated"),
        Split(Regex(r"\s?\p{L}+"), "isolated"),
        Split(Regex(r"\s?\p{P}+"), "isolated"),
        Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"),
        Digits(individual_digits=True),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen35": [
        Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "falcon": [
        Split(Regex(r"[\p{P}\$\+<=>\^~\|`]+"), "isolated"),
        ByteLevel(add_prefix_space=False),
        Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ],
    "gpt-4o": [
        Split(
            Regex(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
PUBLISHED["kimi-k2"] = [
    Split(
        Regex(
            r"[\p{Han}]+"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    ByteLevel(add_prefix_space=False, use_regex=False),
]
PUBLISHED["exaone-moe"] = [
    Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    ByteLevel(add_prefix_space=False, use_regex=False),
]
TEXTS = [
    "Ten animals:\n\n1. Cat\n2. Dog\n\n\n10. Horse",
    "x =   42\n    y    = 1234567",
    "It's HE'LL don't CamelCase http://a.b/c",
    "你好,世界 12 345\r\n\r\n7 \u00bd",
    "def f(a):\n\n    return a+10  # 100%\n\n\n",
    "नमस्ते 12345 a=`b`",
]


def original(steps: list[pre_tokenizers.PreTokenizer], special: list[str]) -> Tokenizer:
    """Trained on the texts with those steps, so that merges of every piece that they leave are in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=ByteLevel.alphabet(), special_tokens=special, show_progress=False
    )
    # pieces of other rules are learned as well: whoever splits otherwise then finds tokens for them
    tokenizer.train_from_iterator([*TEXTS * 3, "\n\n   \n\n    100 200 2345 /", " HE LL 's"], trainer)
    return tokenizer


def write(tokenizer: Tokenizer, rule: str | None, kinds: dict[str, int], path: Path, template: str = "") -> Path:
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if rule:
        writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)
    return finish(writer, tokens, path)


def finish(writer: Any, tokens: list[str], path: Path) -> Path:
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize("rule", PUBLISHED)
def test_text_is_split_by_the_rule_that_the_file_names(rule, tmp_path):
    special = ["<|im_start|>", "<|im_end|>"]
    expected = original(PUBLISHED[rule], special)
    found = load_tokenizer(write(expected, rule, dict.fromkeys(special, gguf.TokenType.CONTROL), tmp_path / "m.gguf"))
    assert found.get_vocab() == expected.get_vocab()
    for text in TEXTS:
        assert found.encode(text, add_special_tokens=False) == expected.encode(text).ids
        assert found.decode(found.encode(text)) == text
    others = {name: original(PUBLISHED[rule], special) for name in PUBLISHED if name != rule}
    if keeps_more := {"qwen2": "qwen35", "kimi-k2": "gpt-4o"}.get(rule):  # that shows where those are learned
        del others[keeps_more]
    for name, other in others.items():
        other.pre_tokenizer = pre_tokenizers.Sequence(PUBLISHED[name])
        assert any(other.encode(text).ids != expected.encode(text).ids for text in TEXTS), "the rules differ"


def test_special_tokens_that_are_not_spelled_in_bytes_stay_whole(tmp_path):
    """DeepSeek's: characters that no byte stands for. One that the user may write is not special."""
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>"]
    expected = original(PUBLISHED["qwen2"], [*special, "<think >"])
    expected.add_tokens([AddedToken("<think >", normalized=False, special=False)])
    kinds = dict.fromkeys(special, gguf.TokenType.CONTROL) | {"<think >": gguf.TokenType.USER_DEFINED}
    found = load_tokenizer(write(expected, "deepseek-r1-qwen", kinds, tmp_path / "m.gguf"))
    assert len(found) == expected.get_vocab_size()
    assert (found.bos_token_id, found.eos_token_id) == (0, 1)
    text = f"{special[0]}{special[2]}It's 12<think >{special[1]}"
    assert found.encode(text) == expected.encode(text).ids
    assert found.encode(text)[:2] == [0, 2]
    assert found.decode(found.encode(text), skip_special_tokens=True) == "It's 12<think >"
    assert found.decode(found.encode(text)) == text


def test_a_rule_that_is_not_known_is_refused(tmp_path):
    tokenizer = original(PUBLISHED["gpt-2"], ["<s>", "</s>"])
    with pytest.raises(UnsupportedModelError, match="splits text by the rule 'made-up'"):
        load_tokenizer(write(tokenizer, "made-up", {}, tmp_path / "a.gguf"))


@pytest.mark.parametrize("rule", [None, "default"])
def test_where_no_rule_is_named_llama_cpps_is_taken_and_said(rule, tmp_path):
    steps = [
        Split(Regex(r"[\p{P}\$\+<=>\^~\|]+"), "isolated"),
        Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
        Split(Regex(r"\p{N}+"), "isolated"),
        Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = original(steps, ["<s>", "</s>"])
    with pytest.warns(UserWarning, match=r"m\.gguf: tokenizer\.ggml\.pre names no rule"):
        found = load_tokenizer(write(tokenizer, rule, {}, tmp_path / "m.gguf"))
    assert [found.encode(text) for text in TEXTS] == [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PUBLISHED["gpt-2"])
    assert [found.encode(text) for text in TEXTS] != [tokenizer.encode(text).ids for text in TEXTS]


MARKS = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = "{{ '<|im_start|>' }}{{ messages[0]['content'] }}<|im_end|>"


@pytest.mark.parametrize("kind", ["NORMAL", "USER_DEFINED", "CONTROL"])
def test_ends_of_turns_are_special_whatever_kind_they_are_given(kind, tmp_path):
    tokenizer = original(PUBLISHED["qwen2"], MARKS)
    kinds = {MARKS[0]: gguf.TokenType.CONTROL, MARKS[1]: gguf.TokenType[kind]}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = load_tokenizer(write(tokenizer, "qwen2", kinds, tmp_path / "m.gguf", TEMPLATE))
    assert found.encode("a<|im_end|>")[1:] == [1] and found.decode([1], skip_special_tokens=True) == ""
    assert [("<|im_end|>" in str(warning.message)) for warning in told] == [True] * (kind == "NORMAL")


def test_marks_of_the_template_that_are_split_are_named(tmp_path):
    tokenizer = original(PUBLISHED["qwen2"], [*MARKS, "<|unrelated|>"])
    path = write(tokenizer, "qwen2", {}, tmp_path / "m.gguf", TEMPLATE)
    with pytest.warns(UserWarning, match=r"<\|im_start\|>, <\|im_end\|> are stored as normal tokens") as told:
        found = load_tokenizer(path)
    assert len(told) == 1 and "<|im_start|> would be split into pieces" in str(told[0].message)
    assert "unrelated" not in str(told[0].message)
    assert len(found.encode("<|unrelated|>")) > 1


@pytest.mark.filterwarnings("default")
def test_a_command_tells_of_it_in_one_line_without_what_steers_a_terminal(tmp_path, capsys):
    mark = "<|\x1b[31m\u202e|>"
    tokenizer = original(PUBLISHED["qwen2"], [mark])
    path = write(tokenizer, "qwen2", {}, tmp_path / "m\x1b.gguf", f"{mark}{{{{ messages[0]['content'] }}}}")
    assert run_command(lambda: len(load_tokenizer(path)) * 0) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and r"<|\x1b[31m\u202e|>" in line and line.isprintable()


SPACE = "▁"
BYTES = [f"<0x{value:02X}>" for value in range(256)]
PIECES = ["▁", "▁▁", "▁▁▁", "▁H", "el", "lo", "ello", "▁Hello", "Hello", "[", "]", "I", "NS", "INS", "T", "INST", "▁["]
PIECES += [*"HeloNSéx", "[INST", "▁[INST", "[INST]", "▁[INST]", "aa", "aaa", "a", "é▁"]
VOCABULARY = ["<unk>", "<s>", "</s>", *BYTES, *dict.fromkeys(PIECES), "<|user|>", "<think>"]


def write_sentencepiece(path: Path, architecture: str = "llama", scores: bool = True, **options: Any) -> Path:
    kinds = dict.fromkeys(BYTES, gguf.TokenType.BYTE) | dict.fromkeys(["<s>", "</s>", "<|user|>"], 3)
    kinds |= {"<unk>": gguf.TokenType.UNKNOWN, "<think>": gguf.TokenType.USER_DEFINED}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(VOCABULARY)
    if scores:
        writer.add_token_scores([score(token) for token in VOCABULARY])
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in VOCABULARY])
    for name, value in options.items():
        getattr(writer, f"add_{name}")(value)
    return finish(writer, VOCABULARY, path)


def score(token: str) -> float:
    """Longer pieces first, and no two the same."""
    return float(len(token)) - VOCABULARY.index(token) / 1000


def by_llama_cpp(text: str, begins: bool = True, swallows: frozenset[str] = frozenset()) -> list[str]:
    """Special tokens first, then in every stretch of text the best pair, the leftmost of equals, until none is left."""
    special = ["<|user|>", "<think>", "<unk>", "</s>", "<s>"]
    if found := next((token for token in special if token in text), None):
        before, _, after = text.partition(found)
        after = after.lstrip() if found in swallows else after
        return [*by_llama_cpp(before, begins, swallows), found, *by_llama_cpp(after, begins, swallows)]
    parts = list((SPACE * (begins and text != "") + text).replace(" ", SPACE))
    while pairs := [(-score(a + b), i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in VOCABULARY]:
        _, index = min(pairs)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    bytes_of = [[part] if part in VOCABULARY else [f"<0x{b:02X}>" for b in part.encode()] for part in parts]
    return [token for tokens in bytes_of for token in tokens]


STRETCHES = st.sampled_from(
    ["<s>", "</s>", "<|user|>", "<think>", "<unk>", "[INST]", "Hello", " ", "  ", "é", "😀", "aaa"]
)


@pytest.fixture(scope="module")
def sentencepiece_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sentencepiece")
    options = {"unsaid": {}, "with": {"add_space_prefix": True}, "without": {"add_space_prefix": False}}
    files = {name: write_sentencepiece(directory / f"{name}.gguf", **given) for name, given in options.items()}
    files["phi3"] = write_sentencepiece(directory / "phi3.gguf", "phi3")
    files["gemma2"] = write_sentencepiece(directory / "gemma2.gguf", "gemma2", add_space_prefix=False)
    return {name: load_tokenizer(file) for name, file in files.items()}


@settings(max_examples=150, deadline=None)
@given(stretches=st.lists(STRETCHES, max_size=8))
def test_sentencepiece_vocabularies_are_read_as_llama_cpp_reads_them(sentencepiece_files, stretches):
    text = "".join(stretches)
    for name, found in sentencepiece_files.items():
        if name == "gemma2":
            continue  # in the order of ids, not of scores
        swallows = frozenset({"</s>", "<|user|>", "<think>"} if name == "phi3" else ())
        expected = by_llama_cpp(text, name != "without", swallows)
        ids = found(text, add_special_tokens=False).input_ids
        assert found.convert_ids_to_tokens(ids) == expected, name
        if name != "phi3":
            shown = found.decode(ids)
            assert shown.replace(" ", "") == text.replace(" ", "")


def test_the_space_before_a_text(sentencepiece_files):
    def pieces(name: str, text: str) -> list[str]:
        found = sentencepiece_files[name]
        return found.convert_ids_to_tokens(found(text, add_special_tokens=False).input_ids)

    assert pieces("unsaid", "<s>[INST] Hello") == ["<s>", "▁[INST]", "▁Hello"]
    assert pieces("without", "<s>[INST] Hello") == ["<s>", "[INST]", "▁Hello"]
    assert pieces("unsaid", " Hello") == ["▁▁", "Hello"] and pieces("gemma2", "Hello")[0] != SPACE
    found = sentencepiece_files["unsaid"]
    assert found("Hello").input_ids[0] == found.bos_token_id == 1 and found.eos_token_id == 2
    assert found.decode(found("Hello  Hello").input_ids, skip_special_tokens=True) == "Hello  Hello"


def test_a_sentencepiece_vocabulary_without_scores_is_refused(tmp_path):
    with pytest.raises(ModelFilesError, match=r"tokens, but 0 in tokenizer\.ggml\.scores"):
        load_tokenizer(write_sentencepiece(tmp_path / "m.gguf", scores=False))


def test_afmoe_groups_digits_from_their_end():
    values = {"tokens": ByteLevel.alphabet(), "merges": [], "pre_tokenizer_type": "afmoe"}
    splitter = byte_level_tokenizer(Path("m.gguf"), values).pre_tokenizer
    pieces = [piece for piece, _ in splitter.pre_tokenize_str("x=1234567 12 345678,90\u4e2d\u6587")]
    assert pieces[:-1] == ["x", "=", "1", "234", "567", "\u0120", "12", "\u0120", "345", "678", ",", "90"]
    assert len(pieces[-1]) == 6, "the bytes of two ideographs"
