"""Byte-level tokenizers from GGUF files: text is split by the rule that the file names, special tokens stay whole."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

from loaders.errors import UnsupportedModelError
from loaders.tokenizers import load_tokenizer
from tests.gguf_samples import gguf, np

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
TEXTS = [
    "Ten animals:\n\n1. Cat\n2. Dog\n\n\n10. Horse",
    "x =   42\n    y    = 1234567",
    "It's HE'LL don't CamelCase http://a.b/c",
    "你好,世界 12 345\r\n\r\n7 \u00bd",
    "def f(a):\n\n    return a+10  # 100%\n\n\n",
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


def write(tokenizer: Tokenizer, rule: str | None, kinds: dict[str, int], path: Path) -> Path:
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


def test_a_rule_that_is_not_known_is_refused_and_none_is_gpt2_s(tmp_path):
    tokenizer = original(PUBLISHED["gpt-2"], ["<s>", "</s>"])
    with pytest.raises(UnsupportedModelError, match="splits text by the rule 'made-up'"):
        load_tokenizer(write(tokenizer, "made-up", {}, tmp_path / "a.gguf"))
    found = load_tokenizer(write(tokenizer, None, {}, tmp_path / "b.gguf"))
    assert [found.encode(text) for text in TEXTS] == [tokenizer.encode(text).ids for text in TEXTS]
