"""What models are asked: given prompts, those here, or random token ids for models without a tokenizer."""

import random
from pathlib import Path

from loaders.checkpoint.model_source import load_tokenizer, model_source
from offload_runtime.errors import UsageError
from offload_runtime.measure_acceptance.prompts import STANDARD_LIBRARY, read_prompts
from offload_runtime.text.prompt import Prompt

HELD_OUT = Path(__file__).parent / "prompts.txt"  # about modules that the demonstration pair was not trained on
FEW = STANDARD_LIBRARY[:4]


def prompts_for(
    model: Path, vocab_size: int, file: Path | None, raw: bool, tokens: int, seed: int = 0, count: int = 2
) -> list[Prompt]:
    """Texts of a file, or the four here, as chat messages where the model has a chat template, unless `raw`.

    A model without a tokenizer gets `count` prompts of `tokens` random ids. Raises UsageError for a file without
    prompts, or with prompts that no tokenizer can read.
    """
    if not model_source(model).has_tokenizer():
        if file not in (None, HELD_OUT):
            raise UsageError(f"--prompts {file}: {model.name} has no tokenizer to read text with")
        numbers = random.Random(seed)
        return [[numbers.randrange(vocab_size) for _ in range(tokens)] for _ in range(count)]
    texts = FEW if file is None else read_prompts(file)
    if not raw and load_tokenizer(model).chat_template:
        return [[{"role": "user", "content": text}] for text in texts]
    return list(texts)
