"""What every method answers."""

import hashlib
import json
import random
from pathlib import Path

from loaders.tokenizers import has_tokenizer, load_tokenizer
from offload_runtime.errors import UsageError
from offload_runtime.measure_acceptance.prompts import read_prompts
from offload_runtime.text.prompt import Prompt, encode_prompt

DEFAULT_PROMPTS = Path(__file__).parent / "prompts.txt"
MADE_UP_PROMPTS, MADE_UP_TOKENS = 16, 16


def encoded_prompts(file: Path | None, model: Path, vocab_size: int, raw: bool) -> list[list[int]]:
    """The prompts of a file, or the default ones, as token ids: chat messages where the model has a chat template.

    Made-up token ids for a model without a tokenizer. Raises UsageError for a file that holds no prompts, or that no
    tokenizer can read.
    """
    if not has_tokenizer(model):
        if file is not None:
            raise UsageError(f"--prompts {file}: {model.name} has no tokenizer to read text with")
        numbers = random.Random(0)
        return [[numbers.randrange(vocab_size) for _ in range(MADE_UP_TOKENS)] for _ in range(MADE_UP_PROMPTS)]
    tokenizer = load_tokenizer(model)
    texts: list[Prompt] = list(read_prompts(file or DEFAULT_PROMPTS))
    if not raw and tokenizer.chat_template:
        texts = [[{"role": "user", "content": str(text)}] for text in texts]
    return [encode_prompt(text, lambda: tokenizer) for text in texts]


def digest(prompts: list[list[int]]) -> str:
    """A short name for exactly these prompts."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
