"""Loading tokenizers from directories whole and broken, and telling equal vocabularies from different ones."""

import base64
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loaders.checkpoint.model_source import load_tokenizer, read_vocabulary
from loaders.errors import DraftMismatchError, ModelFilesError
from loaders.tokenizers.load import check_same_tokens
from loaders.tokenizers.vocabulary import check_same_vocabulary
from tests.samples.tokenizer_samples import SAMPLES

WORDS = ["<unk>", "a", "b", "c", "d"]


def tokenizer_of(words: list[str], added: tuple[str, ...] = ()) -> PreTrainedTokenizerBase:
    """A word-level tokenizer with these words as ids 0, 1, ..., then the added special tokens."""
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer_of(WORDS, ("<end>",)).save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_tokenizer_comes_back(saved: Path) -> None:
    assert load_tokenizer(saved).get_vocab() == tokenizer_of(WORDS, ("<end>",)).get_vocab()


def test_tokenizer_json_alone_is_enough(saved: Path) -> None:
    (saved / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(saved)).encode("a") == [1]


def test_missing_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelFilesError, match=r"no tokenizer\. One of tokenizer\.json, tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ['{"version"', '{"version": "1.0", "model": 3}', "\x00"])
def test_damaged_files_are_a_model_files_error(saved: Path, name: str, content: str) -> None:
    if name == "tokenizer_config.json" and content.endswith("3}"):
        pytest.skip("valid: an unknown key")
    (saved / name).write_text(content)
    with pytest.raises(ModelFilesError, match=r"the tokenizer cannot be loaded|its JSON cannot be read"):
        load_tokenizer(saved)


def test_code_in_the_directory_is_not_run(saved: Path) -> None:
    (saved / "evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((saved / "tokenizer_config.json").read_text())
    config.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    (saved / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesError):
        load_tokenizer(saved)
    assert not (saved / "ran").exists()


def check(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, rows: tuple[int, int] = (8, 8)) -> None:
    check_same_tokens(target, draft, *rows)


def test_equal_and_padded_vocabularies_pass() -> None:
    check(tokenizer_of(WORDS), tokenizer_of(WORDS), rows=(5, 128))
    check(tokenizer_of(WORDS), tokenizer_of(WORDS), rows=(128, 5))


def test_moved_tokens_are_named_at_the_lowest_id() -> None:
    with pytest.raises(DraftMismatchError, match=r"token 'b' is 2 in the target and 4 in the draft.*--draft none"):
        check(tokenizer_of(WORDS), tokenizer_of(["<unk>", "a", "d", "c", "b"]))


def test_replaced_tokens_are_named() -> None:
    with pytest.raises(DraftMismatchError, match="id 3 is 'c' in the target and 'x' in the draft"):
        check(tokenizer_of(WORDS), tokenizer_of(["<unk>", "a", "b", "x", "y"]))


def test_special_tokens_count() -> None:
    with pytest.raises(DraftMismatchError, match="id 5 is '<user>' in the target and '<end>' in the draft"):
        check(tokenizer_of(WORDS, ("<user>",)), tokenizer_of(WORDS, ("<end>",)))


def test_a_token_of_one_side_needs_a_row_on_the_other() -> None:
    extended = tokenizer_of(WORDS, ("<think>",))
    check(extended, tokenizer_of(WORDS), rows=(6, 6))
    check(tokenizer_of(WORDS), extended, rows=(6, 6))
    with pytest.raises(DraftMismatchError, match="'<think>' is 5 in the target, but the draft has 5 tokens"):
        check(extended, tokenizer_of(WORDS), rows=(6, 5))
    with pytest.raises(DraftMismatchError, match="'<think>' is 5 in the draft, but the target has 5 tokens"):
        check(tokenizer_of(WORDS), extended, rows=(5, 6))


def test_a_moved_token_counts_where_its_id_is_free() -> None:
    with pytest.raises(DraftMismatchError, match="token '<end>' is 5 in the target and 6 in the draft"):
        check(tokenizer_of(WORDS, ("<end>",)), tokenizer_of([*WORDS, "e"], ("<end>",)))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_vocabulary_is_read_as_the_tokenizer_has_it(name: str, tmp_path: Path) -> None:
    tokenizer = SAMPLES[name]()
    tokenizer.save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path) == tokenizer.get_vocab() == load_tokenizer(tmp_path).get_vocab()


def test_tokens_added_in_the_config_alone_count(saved: Path) -> None:
    file = saved / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["added_tokens_decoder"] = {"6": {"content": "<think>"}}
    file.write_text(json.dumps(config))
    vocabulary = read_vocabulary(saved)
    assert vocabulary is not None and vocabulary["<think>"] == 6 and vocabulary["<end>"] == 5


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"model": {"vocab": 3}}',
        '{"model": {"vocab": {"a": "x"}}}',
        '{"model": {"vocab": {}}}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": -1, "content": "b"}]}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [7]}',
    ],
)
def test_damaged_vocabularies_are_a_model_files_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json: "):
        read_vocabulary(tmp_path)


def test_no_vocabulary_without_the_file(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


def qwen(*added: str) -> dict[str, int]:
    """A vocabulary of Qwen 2.5's size, without its words."""
    words = [*map(str, range(151_643)), "<|endoftext|>", "<|im_start|>", "<|im_end|>", *added]
    return {word: index for index, word in enumerate(words)}


def test_the_padding_of_qwen_is_allowed() -> None:
    """The 72B has 152,064 rows and the 0.5B 151,936; Qwen 3 has a few tokens more, in rows that are free in 2.5."""
    check_same_vocabulary(qwen("<tool>"), qwen("<tool>"), 152_064, 151_936)
    check_same_vocabulary(qwen("<tool>", "<think>"), qwen("<tool>"), 151_936, 152_064)
    with pytest.raises(DraftMismatchError, match="id 151646 is '<tool>' in the target and '<think>' in the draft"):
        check_same_vocabulary(qwen("<tool>"), qwen("<think>"), 152_064, 151_936)


@pytest.mark.parametrize(
    "name", ["<|reserved_special_token_2|>", "<unused7>", "[control_12]", "<SPECIAL_20>", "<｜place▁holder▁no▁3｜>"]
)
def test_a_placeholder_agrees_with_whatever_stands_in_its_place(name: str) -> None:
    target, draft = {"a": 0, name: 1, "b": 2}, {"a": 0, "<|pad|>": 1, "b": 2, name: 3}
    check_same_vocabulary(target, draft, 4, 4)
    check_same_vocabulary(draft, target, 4, 4)
    with pytest.raises(DraftMismatchError):
        check_same_vocabulary({"a": 0, "reserved": 1}, {"a": 0, "<|pad|>": 1}, 4, 4)


def test_a_token_beyond_its_own_models_rows_is_never_written() -> None:
    """Llama 2 chat's <pad>, Gemma 3 1B's <image_soft_token>."""
    check_same_vocabulary({"a": 0, "b": 1, "<pad>": 2}, {"a": 0, "b": 1}, 2, 2)
    check_same_vocabulary({"a": 0, "b": 1}, {"a": 0, "b": 1, "<pad>": 2}, 2, 2)
    check_same_vocabulary({"a": 0, "<image>": 1}, {"a": 0, "<image>": 1}, 8, 1)


def test_mistrals_own_file_is_enough(tmp_path: Path) -> None:
    """tekken.json: byte-level pieces, behind tokens whose meaning the file leaves to mistral-common."""
    pieces = [bytes([value]) for value in range(256)] + [b"he", b"ll", b"llo", b" w", b"or"]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    content = {
        "config": {"pattern": r"\s?\p{L}+|\s+|.", "default_vocab_size": 271, "default_num_special_tokens": 10},
        "vocab": [{"token_bytes": base64.b64encode(piece).decode()} for piece in pieces],
        "special_tokens": [{"rank": rank, "token_str": token} for rank, token in enumerate(special)],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 271)
    ids = tokenizer("[INST]hello world").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "[INST]", "he", "llo", "Ġw", "or", "l", "d"]
    (tmp_path / "tekken.json").write_text('{"config"')
    with pytest.raises(ModelFilesError, match=r"tekken\.json: its JSON cannot be read"):
        load_tokenizer(tmp_path)
