"""Whether a model's files have what a conversation needs, told without transformers."""

from loaders.checkpoint.model_source import model_source
from loaders.errors import OffloadError
from loaders.tokenizers.chat_templates import read_template
from offload_runtime.options.run_options import Options


def can_converse(options: Options, raw: bool) -> bool:
    """Whether there are a tokenizer and, unless raw, a chat template. Where not, loading them says what is missing."""
    source = model_source(options.model)
    try:
        if not source.has_tokenizer():
            return False
        given = options.chat_template
        return raw or bool(source.chat_template() if given is None else read_template(given))
    except OffloadError:
        return False
