"""Builds a tokenizer from SentencePiece's own file, by that file's settings.

transformers builds one as well, but silently picks the wrong kind for many repositories without a tokenizer.json.
Those of Mistral, Mixtral and Phi, those without a tokenizer_config.json and those that name an old class
(LLaMATokenizer) lose the space before a text, and unigram models become BPE without merges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from transformers import LlamaTokenizer, PreTrainedTokenizerBase

from loaders.json_files import read_json
from loaders.tokenizers.sentencepiece_file import FILE, UNIGRAM, read_sentencepiece
from loaders.tokenizers.tokenizer_json import check_is_no_code

# Generic class names, and all names that Llama's tokenizer has had.
_PLAIN = {"LlamaTokenizer", "LLaMATokenizer", "PreTrainedTokenizer", "TokenizersBackend"}
_SPECIAL = ("bos", "eos", "unk", "pad")


def sentencepiece_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a directory with `tokenizer.model`; None if one of transformers' classes is to read it.

    Raises ModelFilesError for a damaged file, and if the class is code in the repository.
    """
    model = read_sentencepiece(directory / FILE)
    file = directory / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if name and name not in _PLAIN:
        if getattr(transformers, name, None):
            return None
        check_is_no_code(directory, config)
    return _tokenizer(directory, model, config)


def _tokenizer(directory: Path, model: Any, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    ids = {f"{name}_token": getattr(trainer, f"{name}_id") for name in _SPECIAL}
    special = {
        name: model.pieces[index].piece
        for name, index in ids.items()
        if 0 <= index < len(model.pieces) and not config.get(name)  # some configs have empty strings
    }
    tokenizer: PreTrainedTokenizerBase = LlamaTokenizer.from_pretrained(
        directory,
        local_files_only=True,
        add_prefix_space=normalizer.add_dummy_prefix,
        add_bos_token=config.get("add_bos_token", True),
        **special,
    )
    backend = tokenizer.backend_tokenizer
    backend.normalizer = _normalizer(normalizer)
    if normalizer.add_dummy_prefix:
        backend.pre_tokenizer = _space_before("always" if config.get("legacy") else "first")
    if trainer.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in model.pieces]
        backend.model = Unigram(scores, trainer.unk_id, trainer.byte_fallback)
    elif not trainer.byte_fallback:
        backend.model.byte_fallback = False
        backend.model.unk_token = model.pieces[trainer.unk_id].piece
    return tokenizer


def _space_before(which: str) -> pre_tokenizers.PreTokenizer:
    """A space before the first stretch of text, or before each.

    Metaspace adds a space unless the text begins with its mark, here " ". The normalizer has turned leading spaces
    into "▁", so they get a second one, except where extra spaces are removed.
    """
    begin = pre_tokenizers.Metaspace(" ", prepend_scheme=which, split=False)
    return pre_tokenizers.Sequence([begin, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)])


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # a leading space in the text serves as the prefix
        steps += [normalizers.Replace(Regex(" +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    else:
        steps.append(normalizers.Replace(" ", "▁"))
    return normalizers.Sequence(steps)
