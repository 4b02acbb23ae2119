"""tokenizer.json is followed to the letter, whatever class of transformers' the files beside it name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from loaders.checkpoint.model_source import load_tokenizer, read_vocabulary
from loaders.errors import ModelFilesError

TEXTS = [
    "<s>[INST] Hello [/INST]",
    " Hello",
    "  Hello   you",
    "Hello</s> [INST]you",
    "नमस्ते 123 l'eau IT'S\n\n x",
    "",
    "<|end|>  Hello",
]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
LEARNED = ["[INST] Hello there [/INST] Hello you", " [INST] Hello", "   Hello", "नमस्ते l'eau IT'S 123 \n\n"] * 20
QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def of_llama_2() -> Tokenizer:
    """A normalizer puts a space before every stretch of text, as published for Llama 2, Mistral 7B and TinyLlama."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + BYTES, show_progress=False)
    tokenizer.train_from_iterator(LEARNED, trainer)
    state = json.loads(tokenizer.to_str())  # byte tokens are none that text is searched for
    state["added_tokens"] = state["added_tokens"][: len(SPECIAL)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def of_qwen_3_5() -> Tokenizer:
    """Byte-level, with a splitting rule that keeps combining marks with their letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN3_5), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LEARNED, trainer)
    return tokenizer


def of_t5() -> Tokenizer:
    """Unigram."""
    pieces = ["▁", "▁Hello", "▁[", "INST", "] ", "ello", "H", "▁▁"]
    scores = [(token, 0.0) for token in SPECIAL] + [(piece, -float(len(piece))) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram([*scores, *((token, -9.0) for token in BYTES)], 0, True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


FILES: dict[str, Callable[[], Tokenizer]] = {"Llama 2": of_llama_2, "Qwen 3.5": of_qwen_3_5, "T5": of_t5}
CLASSES = [
    ("LlamaTokenizer", "llama"),
    ("LlamaTokenizerFast", "mistral"),
    ("Qwen2Tokenizer", "qwen3_5_text"),
    ("GemmaTokenizer", "gemma"),
    ("PreTrainedTokenizerFast", "llama"),
    (None, "llama"),
    (None, "qwen2"),
    ("NoClassOfTransformers", "llama"),
]


def write(directory: Path, tokenizer: Tokenizer, model_type: str = "llama", **config: Any) -> Tokenizer:
    """The files of a repository; returns the tokenizer that its tokenizer.json describes."""
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 512, **ids}))
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("declared", "model_type"), CLASSES)
def test_ids_are_those_of_the_file(name: str, declared: str | None, model_type: str, tmp_path: Path) -> None:
    flags = {"legacy": False, "add_bos_token": True, "add_eos_token": False, "add_prefix_space": True}
    named = {"tokenizer_class": declared, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **flags}
    expected = write(tmp_path, FILES[name](), model_type, **(named if declared else {}))
    found = load_tokenizer(tmp_path)
    for text in TEXTS:
        for special in (False, True):
            ids = expected.encode(text, add_special_tokens=special).ids
            assert found(text, add_special_tokens=special).input_ids == ids, text
            assert found.decode(ids, skip_special_tokens=special) == expected.decode(ids, skip_special_tokens=special)
    assert (found.bos_token_id, found.eos_token_id) == (1, 2)
    assert found.get_vocab() == expected.get_vocab() == read_vocabulary(tmp_path)


def test_flags_of_added_tokens_are_the_files_and_further_ones_are_added(tmp_path: Path) -> None:
    tokenizer = of_llama_2()
    tokenizer.add_tokens([AddedToken("<|end|>", normalized=False, special=False)])
    end = tokenizer.token_to_id("<|end|>")
    other = {"content": "<|end|>", "lstrip": True, "rstrip": True, "single_word": True, "special": True}
    further = {"content": "<|tool|>", "lstrip": False, "rstrip": True, "single_word": False, "special": True}
    decoder = {str(end): {**other, "normalized": True}, str(end + 1): {**further, "normalized": False}}
    expected = write(tmp_path, tokenizer, added_tokens_decoder=decoder)
    found = load_tokenizer(tmp_path)
    for text in ["a <|end|> b", "a<|end|>b", "<|end|>", "<s> a"]:
        ids = expected.encode(text, add_special_tokens=False).ids
        assert found(text, add_special_tokens=False).input_ids == ids
        assert found.backend_tokenizer.decode(ids) == expected.decode(ids)
    assert found.convert_tokens_to_ids("<|tool|>") == end + 1
    assert found("<|tool|>  a", add_special_tokens=False).input_ids == [
        end + 1,
        *found("a", add_special_tokens=False).input_ids,
    ]


def test_without_names_of_special_tokens_the_ids_of_the_config_name_them(tmp_path: Path) -> None:
    write(tmp_path, of_t5())
    found = load_tokenizer(tmp_path)
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<s>", "</s>", None)
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 10**6, "eos_token_id": [1, 2]}))
    found = load_tokenizer(tmp_path)
    assert (found.bos_token, found.eos_token) == (None, None)


def test_code_beside_the_file_is_refused_unless_transformers_has_the_class(tmp_path: Path) -> None:
    code = {"AutoTokenizer": ["their.Own", None]}
    expected = write(tmp_path, of_llama_2(), tokenizer_class="LlamaTokenizer", auto_map=code)
    assert load_tokenizer(tmp_path)("Hello").input_ids == expected.encode("Hello").ids
    write(tmp_path, of_llama_2(), tokenizer_class="OwnTokenizer", auto_map=code)
    with pytest.raises(ModelFilesError, match="a program in the repository, which is never run"):
        load_tokenizer(tmp_path)
