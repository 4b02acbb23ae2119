"""Vocabularies in SentencePiece's own file: split as it does, compared with others, refused where damaged."""

import json
import struct
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from loaders.checkpoint.model_source import load_tokenizer, read_vocabulary
from loaders.errors import DraftMismatchError, ModelFilesError
from loaders.tokenizers.vocabulary import check_same_vocabulary
from offload_runtime.text.prompt import render_chat, turn_end_tokens
from tests.samples.sentencepiece_samples import CONFIG, splitter, trained, with_json, write_repository

KINDS = ("bpe", "unigram")
PROBES = ("hello world", "Grüße 😀☃ x", "a\nb", "123", "你好", "the  cat   sat", "ends with a space ", "def f(x): ☃☃")
PROBES += (" hello", "   the cat", " ", "▁hello")
SPLITS = {
    "llama": ("llama", CONFIG),
    "legacy": ("llama", {**CONFIG, "legacy": True}),
    "fast": ("llama", {**CONFIG, "tokenizer_class": "LlamaTokenizerFast"}),
    "mistral": ("mistral", CONFIG),  # from here on transformers itself loses the first space
    "mixtral": ("mixtral", CONFIG),
    "phi3": ("phi3", CONFIG),
    "qwen2": ("qwen2", CONFIG),
    "old name": ("llama", {"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}),
    "no class": ("mistral", {"bos_token": "<s>", "eos_token": "</s>"}),
    "no config": ("llama", None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SPLITS)
def test_text_is_split_as_sentencepiece_splits_it(kind: str, case: str, tmp_path: Path) -> None:
    content = trained(kind)
    model_type, config = SPLITS[case]
    tokenizer, theirs = load_tokenizer(write_repository(tmp_path, content, model_type, config)), splitter(content)
    assert tokenizer.get_vocab() == {theirs.id_to_piece(index): index for index in range(len(theirs))}
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    for text in PROBES:
        ids = theirs.encode(text)
        assert tokenizer(text).input_ids == [1, *ids]
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode([1, *ids], skip_special_tokens=True) == theirs.decode(ids)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_space_is_put_before_the_text_or_before_every_stretch_of_it(legacy: bool, tmp_path: Path) -> None:
    content = trained("bpe")
    tokenizer = load_tokenizer(write_repository(tmp_path, content, config={**CONFIG, "legacy": legacy}))
    theirs = splitter(content)
    for text in ("hello", " hello"):
        after = tokenizer(f"hello</s>{text}", add_special_tokens=False).input_ids[len(theirs.encode("hello")) + 1 :]
        written = "".join(tokenizer.convert_ids_to_tokens(after))
        assert written == "▁" * legacy + text.replace(" ", "▁")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"normalization_rule_name": "nfkc_cf"},
        {"bos_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>", "pad_id": 1, "eos_id": 2, "byte_fallback": False},
    ],
    ids=lambda options: "{}={}".format(*next(iter(options.items()))),
)
def test_the_file_says_how_it_is_split(kind: str, options: dict, tmp_path: Path) -> None:
    content = trained(kind, **options)
    tokenizer, theirs = load_tokenizer(write_repository(tmp_path, content, config=None)), splitter(content)
    assert tokenizer.bos_token_id == theirs.bos_id() and tokenizer.eos_token_id == theirs.eos_id()
    for text in ("hello world", "the   cat", "ﬁ ① Grüße", "你好", "one\ntwo", "  hello", " "):
        assert tokenizer(text).input_ids == [theirs.bos_id(), *theirs.encode(text)]


def test_gemmas_class_is_left_to_transformers(tmp_path: Path) -> None:
    content = trained(
        "bpe", add_dummy_prefix=False, user_defined_symbols="<start_of_turn>,\n\n", pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, bos_piece="<bos>", eos_piece="<eos>",
    )  # fmt: skip
    config = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True}
    tokenizer, theirs = load_tokenizer(write_repository(tmp_path, content, "gemma", config)), splitter(content)
    assert type(tokenizer).__name__ == "GemmaTokenizer"
    for text in ("<start_of_turn>hello  world", "a\n\nb", "☃ é"):
        assert tokenizer(text).input_ids == [2, *theirs.encode(text)]


def test_special_tokens_and_added_ones_are_single(tmp_path: Path) -> None:
    directory = write_repository(tmp_path, trained("bpe"), config={**CONFIG, "pad_token": "[PAD]"})
    (directory / "added_tokens.json").write_text(json.dumps({"[PAD]": 380, "<|end_of_turn|>": 381}))
    tokenizer = load_tokenizer(directory)
    assert tokenizer("hello</s>hello<|end_of_turn|>").input_ids[-1] == 381
    assert 2 in tokenizer("hello</s>hello").input_ids
    assert read_vocabulary(directory) == tokenizer.get_vocab() and tokenizer.pad_token_id == 380


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_hold_the_same_vocabulary(kind: str, tmp_path: Path) -> None:
    alone = write_repository(tmp_path / "alone", trained(kind), config={**CONFIG, "legacy": True})
    tokenizer = with_json(alone, tmp_path / "json")
    assert read_vocabulary(alone) == read_vocabulary(tmp_path / "json") == tokenizer.get_vocab()
    for one, other in ((alone, tmp_path / "json"), (tmp_path / "json", alone)):
        check_same_vocabulary(read_vocabulary(one), read_vocabulary(other), 512, 380)
    again = load_tokenizer(tmp_path / "json")
    assert [again(text).input_ids for text in PROBES] == [tokenizer(text).input_ids for text in PROBES]
    other = write_repository(tmp_path / "other", trained(kind, vocab_size=310))
    with pytest.raises(DraftMismatchError, match="in the target"):
        check_same_vocabulary(read_vocabulary(alone), read_vocabulary(other), 512, 512)


def test_a_plan_reads_a_vocabulary_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from loaders.checkpoint.model_source import read_vocabulary as read\nprint(len(read(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code + "\nprint('torch' in sys.modules)"]
    directory = write_repository(tmp_path, trained("bpe"))
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([*command, directory], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["380", "False"]


DAMAGED = {
    "cut off": (lambda content: content[:1000], "cut off"),
    "behind the pieces": (lambda content: content[: content.index(b"hello")], "cut off"),
    "another format": (lambda content: b"IQ== 0\nIg== 1\n" * 9, "(another format|no pieces)"),
    "empty": (lambda content: b"", "no pieces"),
    "words": (lambda content: trained("word", byte_fallback=False), "neither of the unigram nor of the BPE kind"),
    "a piece twice": (lambda content: content.replace("▁the".encode(), "▁cat".encode()), "a piece twice"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_a_model_files_error(case: str, tmp_path: Path) -> None:
    damage, why = DAMAGED[case]
    directory = write_repository(tmp_path, damage(trained("bpe")))
    for read in (load_tokenizer, read_vocabulary):
        with pytest.raises(ModelFilesError, match=rf"tokenizer\.model: .*{why}.*copy a tokenizer\.json"):
            read(directory)


def table(layers: list[int], replacements: bytes = b"x\0") -> bytes:
    return struct.pack(f"<{len(layers) + 1}I", 4 * len(layers), *layers) + replacements


def trie(**changed: int) -> list[int]:
    """Of 512 nodes: "a" is replaced by what begins at 0. root, node, leaf: other values for these."""
    layers = [0] * 512
    layers[0] = changed.get("root", 256 << 10)
    layers[256 ^ ord("a")] = changed.get("node", 1 << 10 | 1 << 8 | ord("a"))
    layers[256 ^ ord("a") ^ 1] = changed.get("leaf", 1 << 31)
    return layers


TABLES = {
    "no bytes of a trie": b"\1",
    "an empty trie": table([]),
    "a trie that ends early": table([0] * 512)[:1000],
    "a block that ends early": table(trie()[:400]),
    "a root that is a leaf": table(trie(root=1 << 31)),
    "a root that leads out": table(trie(root=512 << 10)),
    "a node that leads out": table(trie(node=512 << 10 | 1 << 8 | ord("a"))),
    "a replacement behind the last": table(trie(leaf=1 << 31 | 99)),
    "a replacement within a character": table(trie(leaf=1 << 31 | 1), "é\0".encode()),
}


def with_table(content: bytes) -> bytes:
    model = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(trained("unigram"))
    model.normalizer_spec.precompiled_charsmap = content
    return model.SerializeToString()


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_characters_that_leads_out_of_itself_is_refused(case: str, tmp_path: Path) -> None:
    """tokenizers would crash, in the middle of a conversation where only some text leads there."""
    directory = write_repository(tmp_path, with_table(TABLES[case]))
    with pytest.raises(ModelFilesError, match="its table of characters leads out of itself"):
        load_tokenizer(directory)


def test_a_table_of_characters_is_used(tmp_path: Path) -> None:
    content = with_table(table(trie(), b"cat\0"))
    tokenizer = load_tokenizer(write_repository(tmp_path, content))
    assert tokenizer("a").input_ids == [1, *splitter(content).encode("a")] == [1, splitter(trained("unigram"))["▁cat"]]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_repository(tmp_path, trained("bpe"))
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(ModelFilesError, match="pip install --upgrade sentencepiece protobuf"):
        load_tokenizer(directory)


@pytest.mark.parametrize("with_tokenizer_json", [False, True])
def test_a_class_that_is_code_in_the_repository_is_refused(with_tokenizer_json: bool, tmp_path: Path) -> None:
    directory = write_repository(tmp_path / "model", trained("bpe"))
    if with_tokenizer_json:
        with_json(directory, directory)
    config = {**CONFIG, "tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (directory / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnTokenizer: pass\n")
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesError, match="a program in the repository, which is never run"):
        load_tokenizer(directory)
    assert not (tmp_path / "ran").exists()


def test_unigram_models_are_not_read_as_bpe_from_tokenizer_json_either(tmp_path: Path) -> None:
    """transformers rebuilds what names LlamaTokenizer as BPE, here without merges."""
    content = trained("unigram")
    with_json(write_repository(tmp_path / "alone", content), tmp_path / "json")
    config = json.loads((tmp_path / "json" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizer"
    tokenizer = load_tokenizer(tmp_path / "json")
    assert tokenizer("hello world", add_special_tokens=False).input_ids == splitter(content).encode("hello world")


def test_vicuna_chats_although_its_files_have_no_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_repository(tmp_path / "models--lmsys--Vicuna-7b-v1.5" / "ab", trained("bpe")))
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    text = render_chat(tokenizer, turns, add_generation_prompt=True)
    assert text.startswith("<s>A chat between a curious user and an artificial intelligence assistant.")
    assert text.endswith("user's questions. USER: Hi ASSISTANT: Hello.</s>USER: Why? ASSISTANT:")
    system = render_chat(tokenizer, [{"role": "system", "content": "Be brief."}, *turns[:1]], True)
    assert system == "<s>Be brief. USER: Hi ASSISTANT:"
    assert turn_end_tokens(tokenizer) == {2}
    assert load_tokenizer(write_repository(tmp_path / "llama", trained("bpe"))).chat_template is None
