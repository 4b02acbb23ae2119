"""Whether a model's files have what a conversation needs, told without transformers."""

from loaders.errors import OffloadError
from loaders.gguf.model import is_gguf, read_gguf_cached
from loaders.gguf.vocabulary import has_gguf_vocabulary
from loaders.hub.needed_files import VOCABULARY_FILES
from loaders.tokenizers.chat_templates import chat_template_of, gguf_chat_template, read_template
from offload_runtime.options.run_options import Options


def can_converse(options: Options, raw: bool) -> bool:
    """Whether there are a tokenizer and, unless raw, a chat template. Where not, loading them says what is missing."""
    try:
        return _has_tokenizer(options) and (raw or _has_template(options))
    except OffloadError:
        return False


def _has_tokenizer(options: Options) -> bool:
    if is_gguf(options.model):
        return has_gguf_vocabulary(read_gguf_cached(options.model))
    return any((options.model / name).is_file() for name in VOCABULARY_FILES)


def _has_template(options: Options) -> bool:
    if options.chat_template is not None:
        return bool(read_template(options.chat_template))
    if is_gguf(options.model):
        return bool(gguf_chat_template(read_gguf_cached(options.model).metadata))
    return bool(chat_template_of(options.model))
