"""What the benchmark asks: given prompts, its own, or made-up token ids for made-up weights."""

import random
from pathlib import Path

from loaders.tokenizers import has_tokenizer, load_tokenizer
from offload_runtime.errors import UsageError
from offload_runtime.prompt import Prompt

DEFAULT_PROMPTS = (
    "What does the function `os.walk` do?",
    "Show me the code of `textwrap.dedent`.",
    "What is the module `json` for?",
    "What does the class `collections.Counter` do?",
)
MADE_UP_PROMPTS = 2


def text_prompts(file: Path | None, model: Path, raw: bool) -> list[Prompt]:
    """The texts of a file, or the default ones; as chat messages where the model has a chat template, unless `raw`."""
    texts = list(DEFAULT_PROMPTS) if file is None else read_prompts(file)
    if not raw and load_tokenizer(model).chat_template:
        return [[{"role": "user", "content": text}] for text in texts]
    return list(texts)


def made_up_prompts(tokens: int, vocab_size: int, seed: int) -> list[Prompt]:
    """Random token ids."""
    numbers = random.Random(seed)
    return [[numbers.randrange(vocab_size) for _ in range(tokens)] for _ in range(MADE_UP_PROMPTS)]


def prompts_for(model: Path, vocab_size: int, file: Path | None, raw: bool, tokens: int, seed: int) -> list[Prompt]:
    """Text for a model with a tokenizer, `tokens` made-up token ids per prompt for one without.

    Raises UsageError for a file without prompts, or with prompts that no tokenizer can read.
    """
    if has_tokenizer(model):
        return text_prompts(file, model, raw)
    if file is not None:
        raise UsageError(f"--prompts {file}: {model.name} has no tokenizer to read text with")
    return made_up_prompts(tokens, vocab_size, seed)


def read_prompts(file: Path) -> list[str]:
    """Prompts separated by blank lines if there are any, else one a line."""
    try:
        text = file.read_text(encoding="utf-8").strip("\n")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    blocks = text.split("\n\n") if "\n\n" in text else text.splitlines()
    prompts = [block.strip("\n") for block in blocks if block.strip()]
    if not prompts:
        raise UsageError(f"{file}: it holds no prompt")
    return prompts
