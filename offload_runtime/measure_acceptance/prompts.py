"""Prompts for the target: given ones, built-in ones, or random token ids for a model without a tokenizer."""

import random
from pathlib import Path

from loaders.checkpoint.model_source import load_tokenizer, model_source
from offload_runtime.errors import UsageError
from offload_runtime.text.prompt import Prompt

MADE_UP_TOKENS, MADE_UP_PROMPTS = 32, 2

GENERAL = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a refrigerator works to a ten-year-old.",
    "Write a Python function that merges two sorted lists, and explain its running time.",
    "What were the main causes of the First World War?",
    "Give me a recipe for a vegetable soup for four people.",
    "Translate into French: The train to Lyon leaves at seven, and we are late.",
    "What is the difference between a virus and a bacterium?",
    "Write a polite letter asking a landlord to repair a heater.",
    "A shop sells pens at 3 for 2 dollars. How much do 18 pens cost? Show your steps.",
    "Summarise the plot of Hamlet in one paragraph.",
    "List five ways to save water at home, with a sentence on each.",
    "How does a transformer language model produce text?",
    "Write an SQL query for the ten customers who spent most last year.",
    "What should I consider before adopting a dog?",
    "Explain the offside rule in football.",
    "Write a poem of eight lines about autumn.",
    "What is inflation, and why do central banks care about it?",
    "Describe how to change the tyre of a bicycle, step by step.",
    "Compare the climates of Lisbon and Helsinki.",
    "Write a bash script that renames all .jpeg files in a folder to .jpg.",
    "Who was Ada Lovelace?",
    "Give arguments for and against remote work.",
    "Explain photosynthesis in three sentences.",
)
STANDARD_LIBRARY = (
    "What does the function `os.walk` do?",
    "Show me the code of `textwrap.dedent`.",
    "What is the module `json` for?",
    "What does the class `collections.Counter` do?",
    "Explain the Python topic `with`.",
    "Show me the code of `argparse.ArgumentParser.add_argument`.",
    "What does the function `shutil.copytree` do?",
    "What is the module `asyncio` for?",
    "What does the class `threading.Thread` do?",
    "Show me the code of `functools.lru_cache`.",
    "What does the function `re.compile` do?",
    "Explain the Python topic `lists`.",
    "What is the module `http.client` for?",
    "Show me the code of `email.message.Message.get`.",
    "What does the class `decimal.Decimal` do?",
    "What does the function `statistics.median` do?",
    "Show me the code of `zipfile.ZipFile.open`.",
    "What is the module `logging` for?",
    "Explain the Python topic `try`.",
    "What does the class `io.BytesIO` do?",
    "Show me the code of `socket.create_connection`.",
    "What does the function `difflib.get_close_matches` do?",
    "What is the module `unittest` for?",
    "Show me the code of `pathlib.Path.glob`.",
    "What does the class `queue.Queue` do?",
    "Show me the code of `heapq.merge`.",
    "What does the function `inspect.signature` do?",
    "Explain the Python topic `class`.",
    "What is the module `ctypes` for?",
    "Show me the code of `configparser.RawConfigParser.read`.",
    "What does the class `datetime.timedelta` do?",
    "What does the function `bisect.insort` do?",
)


def prompts_for(model: Path, vocab_size: int, file: Path | None, demonstration: bool, seed: int) -> list[Prompt]:
    """Texts of a file, or the built-in ones, as chat messages if the model has a chat template.

    A model without a tokenizer gets random token ids. Raises UsageError for a file with such a model, and for a file
    without prompts.
    """
    if not model_source(model).has_tokenizer():
        if file is not None:
            raise UsageError(f"--prompts {file}: {model.name} has no tokenizer to read text with")
        return [prompt for part in range(2) for prompt in made_up_prompts(MADE_UP_TOKENS, vocab_size, seed + part)]
    texts = read_prompts(file) if file is not None else STANDARD_LIBRARY if demonstration else GENERAL
    if load_tokenizer(model).chat_template:
        return [[{"role": "user", "content": text}] for text in texts]
    return list(texts)


def made_up_prompts(tokens: int, vocab_size: int, seed: int) -> list[Prompt]:
    """Random token ids."""
    numbers = random.Random(seed)
    return [[numbers.randrange(vocab_size) for _ in range(tokens)] for _ in range(MADE_UP_PROMPTS)]


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
