"""What the benchmark asks: given prompts, its own, or made-up token ids for made-up weights."""

from pathlib import Path

from loaders.tokenizers import has_tokenizer, load_tokenizer
from offload_runtime.errors import UsageError
from offload_runtime.measure_acceptance.prompts import made_up_prompts, read_prompts
from offload_runtime.text.prompt import Prompt

DEFAULT_PROMPTS = (
    "What does the function `os.walk` do?",
    "Show me the code of `textwrap.dedent`.",
    "What is the module `json` for?",
    "What does the class `collections.Counter` do?",
)


def text_prompts(file: Path | None, model: Path, raw: bool) -> list[Prompt]:
    """The texts of a file, or the default ones; as chat messages where the model has a chat template, unless `raw`."""
    texts = list(DEFAULT_PROMPTS) if file is None else read_prompts(file)
    if not raw and load_tokenizer(model).chat_template:
        return [[{"role": "user", "content": text}] for text in texts]
    return list(texts)


def prompts_for(model: Path, vocab_size: int, file: Path | None, raw: bool, tokens: int, seed: int) -> list[Prompt]:
    """Text for a model with a tokenizer, `tokens` made-up token ids per prompt for one without.

    Raises UsageError for a file without prompts, or with prompts that no tokenizer can read.
    """
    if has_tokenizer(model):
        return text_prompts(file, model, raw)
    if file is not None:
        raise UsageError(f"--prompts {file}: {model.name} has no tokenizer to read text with")
    return made_up_prompts(tokens, vocab_size, seed)
