"""Whether a model's files have what a conversation needs, found out without transformers."""

from loaders.checkpoint.model_source import model_source
from loaders.errors import OffloadError
from loaders.tokenizers.chat_templates import read_template
from offload_runtime.options.run_options import Options


def can_converse(options: Options, raw: bool) -> bool:
    """Whether there is a tokenizer and, unless raw, a chat template. If not, loading reports what is missing."""
    source = model_source(options.model)
    try:
        if not source.has_tokenizer():
            return False
        given = options.chat_template
        return raw or bool(source.chat_template() if given is None else read_template(given))
    except OffloadError:
        return False
