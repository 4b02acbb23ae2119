"""A model's files behind one interface: a directory with config.json and safetensors, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loaders.errors import ModelFilesError
from loaders.foreign_files import broken_link
from loaders.formats.side_files import with_side_file
from loaders.gguf.model import is_gguf, read_gguf_cached, read_gguf_checkpoint, read_gguf_config
from loaders.gguf.names import split_names
from loaders.gguf.vocabulary import gguf_vocabulary, has_gguf_vocabulary
from loaders.hub.names import snapshot_of
from loaders.hub.needed_files import GENERATION_CONFIG, VOCABULARY_FILES, check_small_files
from loaders.json_files import read_json
from loaders.safetensors_files.headers import Checkpoint, has_all_weights, no_such_directory, read_checkpoint
from loaders.tokenizers.chat_templates import chat_template_of, gguf_chat_template
from loaders.tokenizers.vocabulary import has_vocabulary_files, read_vocabulary_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class ModelSource:
    """What a model's files say: here, those of a directory with config.json and safetensors.

    Every method raises ModelFilesError for damaged files; most need no torch. path: the directory or the file.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def config_file(self) -> Path:
        """Where the config comes from; it may be missing."""
        return self.path / "config.json"

    @property
    def generation_config_files(self) -> tuple[Path, ...]:
        """Where sampling defaults may be; the first file that exists is used."""
        return self.path / GENERATION_CONFIG, self.config_file

    def config(self) -> dict[str, Any]:
        """The config, completed by a side file about quantized weights; unchecked."""
        if not self.path.is_dir():
            raise ModelFilesError(no_such_directory(self.path))
        if link := broken_link(self.config_file):
            raise ModelFilesError(link)
        if not self.config_file.is_file():
            raise ModelFilesError(
                f"{self.config_file}: no such file. Give the directory of a model, with config.json and "
                "*.safetensors, or a .gguf file."
            )
        check_small_files(self.path)
        return with_side_file(read_json(self.config_file), self.path)

    def config_content(self) -> bytes:
        """A value that changes with the config. Raises OSError if it cannot be read."""
        return self.config_file.read_bytes()

    def transformers_config(self) -> PretrainedConfig:
        """transformers' config, read without network and without running the model's code."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)

    def checkpoint(self) -> Checkpoint:
        """The tensors by transformers' names, checked against the files; also raises UnsupportedModelError."""
        return read_checkpoint(self.path)

    def is_downloaded(self) -> bool:
        """Whether all weights are on disk."""
        return has_all_weights(self.path)

    def awaits_download(self) -> bool:
        """Whether the model was resolved by name and its weights are not downloaded yet."""
        return self.config_file.is_file() and not self.is_downloaded()

    def has_vocabulary(self) -> bool:
        """Whether `vocabulary` is not None."""
        return has_vocabulary_files(self.path)

    def vocabulary(self) -> dict[str, int] | None:
        """Token to id, added tokens included; None if the files have no list that can be read without transformers."""
        return read_vocabulary_files(self.path) if self.has_vocabulary() else None

    def has_tokenizer(self) -> bool:
        """Whether there are files to build a tokenizer from."""
        return any((self.path / name).is_file() for name in VOCABULARY_FILES)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with its chat template, loaded without network and without running the model's code."""
        from loaders.tokenizers.load import tokenizer_in, usable

        return usable(self.path, lambda: tokenizer_in(self.path))

    def chat_template(self, for_tools: bool = False) -> str | None:
        """The chat template, if there is one. for_tools: the one that is only for prompts with tools."""
        return chat_template_of(self.path, for_tools)


class _GgufSource(ModelSource):
    @property
    def config_file(self) -> Path:
        return self.path

    @property
    def generation_config_files(self) -> tuple[Path, ...]:
        """At the top of its repository's snapshot: what lies beside other GGUF files need not be theirs."""
        return ((snapshot_of(self.path) or self.path) / GENERATION_CONFIG,)

    def config(self) -> dict[str, Any]:
        return read_gguf_config(self.path)

    def config_content(self) -> bytes:
        return repr(self.config()).encode()

    def transformers_config(self) -> PretrainedConfig:
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.config())

    def checkpoint(self) -> Checkpoint:
        return read_gguf_checkpoint(self.path)

    def is_downloaded(self) -> bool:
        return all(self.path.with_name(name).is_file() for name in split_names(self.path.name))

    def awaits_download(self) -> bool:
        return not self.is_downloaded()

    def has_vocabulary(self) -> bool:
        return self.path.is_file() and self.has_tokenizer()

    def vocabulary(self) -> dict[str, int] | None:
        return gguf_vocabulary(read_gguf_cached(self.path)) if self.has_vocabulary() else None

    def has_tokenizer(self) -> bool:
        return has_gguf_vocabulary(read_gguf_cached(self.path))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from loaders.tokenizers.gguf import gguf_tokenizer
        from loaders.tokenizers.load import usable

        if not self.has_tokenizer():
            raise ModelFilesError(f"{self.path}: it holds no tokenizer. Use token ids instead of text.")
        return usable(self.path, lambda: gguf_tokenizer(read_gguf_cached(self.path)))

    def chat_template(self, for_tools: bool = False) -> str | None:
        return gguf_chat_template(read_gguf_cached(self.path).metadata, for_tools)


def model_source(model: Path | str) -> ModelSource:
    """The source that a path names. It need not exist."""
    return _GgufSource(Path(model)) if is_gguf(model) else ModelSource(Path(model))


def load_tokenizer(model: Path | str) -> PreTrainedTokenizerBase:
    """See `ModelSource.tokenizer`."""
    return model_source(model).tokenizer()


def read_vocabulary(model: Path | str) -> dict[str, int] | None:
    """See `ModelSource.vocabulary`."""
    return model_source(model).vocabulary()
