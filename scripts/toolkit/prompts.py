"""What models are asked: given prompts, those here, or random token ids for models without a tokenizer."""

import hashlib
import json
from pathlib import Path

from loaders.checkpoint.model_source import load_tokenizer, model_source
from offload_runtime.errors import UsageError
from offload_runtime.measure_acceptance.prompts import made_up_prompts, read_prompts
from offload_runtime.text.prompt import Prompt, encode_prompt

HELD_OUT = Path(__file__).parent / "prompts.txt"  # about modules that the demonstration pair was not trained on
FEW = (
    "What does the function `os.walk` do?",
    "Show me the code of `textwrap.dedent`.",
    "What is the module `json` for?",
    "What does the class `collections.Counter` do?",
)


def prompts_for(
    model: Path, vocab_size: int, file: Path | None, raw: bool, tokens: int, seed: int = 0, count: int = 2
) -> list[Prompt]:
    """Texts of a file, or the four here, as chat messages where the model has a chat template, unless `raw`.

    A model without a tokenizer gets `count` prompts of `tokens` random ids. Raises UsageError for a file without
    prompts, or with prompts that no tokenizer can read.
    """
    if not model_source(model).has_tokenizer():
        if file is not None and file != HELD_OUT:
            raise UsageError(f"--prompts {file}: {model.name} has no tokenizer to read text with")
        return [prompt for part in range(count // 2) for prompt in made_up_prompts(tokens, vocab_size, seed + part)]
    texts = list(FEW) if file is None else read_prompts(file)
    if not raw and load_tokenizer(model).chat_template:
        return [[{"role": "user", "content": text}] for text in texts]
    return list(texts)


def encoded(prompts: list[Prompt], model: Path) -> list[list[int]]:
    """The same as token ids."""
    return [encode_prompt(prompt, lambda: load_tokenizer(model)) for prompt in prompts]


def digest(prompts: list[list[int]]) -> str:
    """A short name for exactly these prompts."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
