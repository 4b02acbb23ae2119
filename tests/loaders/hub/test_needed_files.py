"""Which files of a repository are downloaded, by their names alone, in the layouts that repositories have."""

import pytest

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.hub.needed_files import VOCABULARY_FILES, needed_files, needs_index

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
WORDS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SURPLUS = (
    *(".gitattributes", "README.md", "LICENSE", "USE_POLICY.md", "training_args.bin", "modeling_own.py"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", "consolidated.00.pth"),
    *("model.onnx", "model.fp16.safetensors", "tf_model.h5", "flax_model.msgpack", "model-q4.gguf", "image.png"),
)


def test_a_model_in_one_file() -> None:
    names = {*WORDS, *SURPLUS, "model.safetensors"}
    assert not needs_index(names)
    assert needed_files(names) == [*sorted(WORDS), "model.safetensors"]


def test_a_model_in_shards() -> None:
    names = {*WORDS, *SURPLUS, *SHARDS, INDEX}
    assert needs_index(names)
    assert needed_files(names, set(SHARDS)) == [*sorted(WORDS), INDEX, *SHARDS]


def test_one_whole_file_wins_over_shards() -> None:
    names = {*WORDS, *SHARDS, INDEX, "model.safetensors"}
    assert not needs_index(names)
    assert needed_files(names) == [*sorted(WORDS), "model.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        *VOCABULARY_FILES,
        *("merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.json", "acceptance.json"),
        *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
        "additional_chat_templates/tool_use.jinja",
    ],
)
def test_what_tokenizers_and_formats_need_is_taken(name: str) -> None:
    assert name in needed_files({"config.json", "model.safetensors", name})


def test_code_is_never_taken() -> None:
    names = {"config.json", "model.safetensors", "modeling_x.py", "tokenization_x.py", "setup.sh", "data.pkl"}
    names |= {"additional_chat_templates/x.py", "other/x.jinja", "additional_chat_templates/deep/x.jinja"}
    assert needed_files(names) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["mmproj-b.gguf", "mmproj-c.gguf", "mmproj-a.gguf"],
            "only mmproj-a.gguf, mmproj-b.gguf and 1 more. Such GGUF files",
        ),
        (["config.json", "pytorch_model.bin", "tokenizer.json"], "only pytorch_model.bin. Such files can run code"),
        (["config.json", "consolidated.00.pth"], "only consolidated.00.pth. Such files can run code"),
        (["adapter_config.json", "adapter_model.safetensors"], "only adapter_model.safetensors. These are adapters"),
    ],
)
def test_other_weights_are_refused_by_name(names: list[str], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        needed_files(set(names))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("names", "shards", "message"),
    [
        ([], [], "no weights in safetensors format"),
        (["config.json", "model.onnx"], [], "no weights in safetensors format, only model.onnx"),
        (["model.safetensors"], [], "no config.json"),
        (["config.json", INDEX, SHARDS[0]], SHARDS, f"1 of 2 weight files .* the first is {SHARDS[1]}"),
    ],
)
def test_incomplete_repositories(names: list[str], shards: list[str], message: str) -> None:
    with pytest.raises(ModelFilesError, match=message):
        needed_files(set(names), shards)
