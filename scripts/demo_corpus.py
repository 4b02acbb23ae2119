"""Chat conversations about the standard library of the running interpreter: the corpus of the demonstration pair.

Everything comes from files that every Python installation carries: docstrings and source of the standard library's
modules, docstrings of the built-in modules, and the language topics of `pydoc`. Tests, bundled third-party trees, codec
tables and files that are not ASCII are left out. The same interpreter and seed give the same conversations.
"""

import ast
import hashlib
import importlib
import inspect
import random
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Message = dict[str, str]

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "ensurepip"}
SYSTEM_MESSAGE = "You answer questions about Python and its standard library."
MAX_ANSWER_CHARS = 3000
MIN_ANSWER_CHARS = 40
HELD_OUT_SHARE = 24  # one module in 24 is held out
SYSTEM_MESSAGE_SHARE = 0.15


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, with the module they are about."""

    module: str
    question: str
    answer: str


def build_corpus(seed: int) -> tuple[list[list[Message]], list[list[Message]]]:
    """Return the conversations for training and those held out, shuffled; a module is in one of the two only."""
    rng = random.Random(seed)
    by_module: dict[str, list[Exchange]] = {}
    for exchange in _distinct(_all_exchanges()):
        by_module.setdefault(exchange.module, []).append(exchange)
    train: list[list[Message]] = []
    held_out: list[list[Message]] = []
    for module in sorted(by_module):
        side = held_out if is_held_out(module) else train
        side.extend(_conversations(by_module[module], rng))
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


def is_held_out(module: str) -> bool:
    """Whether a module belongs to the held-out part: decided by a hash of its name alone."""
    digest = hashlib.sha256(module.encode()).digest()
    return int.from_bytes(digest[:4], "little") % HELD_OUT_SHARE == 0


def _conversations(exchanges: list[Exchange], rng: random.Random) -> Iterator[list[Message]]:
    """Group the exchanges of one module, in random order, into conversations of one to three turns."""
    waiting = rng.sample(exchanges, len(exchanges))
    while waiting:
        turns = [waiting.pop() for _ in range(min(len(waiting), rng.choice((1, 1, 2, 3))))]
        messages = [{"role": "system", "content": SYSTEM_MESSAGE}] if rng.random() < SYSTEM_MESSAGE_SHARE else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        yield messages


def _distinct(exchanges: Iterator[Exchange]) -> Iterator[Exchange]:
    """Drop answers that are too short, too long, not ASCII or already given."""
    seen: set[str] = set()
    for exchange in exchanges:
        answer = exchange.answer
        if not MIN_ANSWER_CHARS <= len(answer) <= MAX_ANSWER_CHARS or not answer.isascii() or answer in seen:
            continue
        seen.add(answer)
        yield exchange


def _all_exchanges() -> Iterator[Exchange]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED_FOLDERS.intersection(parts) and not parts[0].startswith("config-"):
            yield from _source_file_exchanges(path, _module_name(parts))
    for name in sorted(sys.builtin_module_names):
        if not name.startswith("_"):
            yield from _builtin_exchanges(name)
    yield from _topic_exchanges()


def _module_name(parts: tuple[str, ...]) -> str:
    names = [*parts[:-1], parts[-1].removesuffix(".py")]
    return ".".join(names[:-1] if names[-1] == "__init__" and len(names) > 1 else names)


def _source_file_exchanges(path: Path, module: str) -> Iterator[Exchange]:
    """The module's own docstring, then docstring and source of every function, method and class of the file."""
    source = path.read_bytes()
    if not source.isascii() or module.startswith(("encodings.", "pydoc_data.")):
        return
    text = source.decode("ascii")
    tree = ast.parse(text)
    doc = ast.get_docstring(tree)
    if doc:
        yield Exchange(module, f"What is the module `{module}` for?", doc)
    yield from _definition_exchanges(tree, text.splitlines(), module, module)


def _definition_exchanges(node: ast.AST, lines: list[str], module: str, prefix: str) -> Iterator[Exchange]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{prefix}.{child.name}"
        is_class = isinstance(child, ast.ClassDef)
        doc = ast.get_docstring(child)
        if doc:
            yield Exchange(module, f"What does the {'class' if is_class else 'function'} `{name}` do?", doc)
        first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
        code = textwrap.dedent("\n".join(lines[first - 1 : child.end_lineno]))
        yield Exchange(module, f"Show me the code of `{name}`.", code)
        if is_class:
            yield from _definition_exchanges(child, lines, module, name)


def _builtin_exchanges(module: str) -> Iterator[Exchange]:
    """Docstrings of a module written in C, of its functions and classes, and of the methods of its classes."""
    loaded = importlib.import_module(module)
    if loaded.__doc__:
        yield Exchange(module, f"What is the module `{module}` for?", inspect.cleandoc(loaded.__doc__))
    for name, value in sorted(vars(loaded).items()):
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        members = sorted(vars(value).items()) if inspect.isclass(value) else []
        for path, item in [(name, value), *((f"{name}.{key}", member) for key, member in members)]:
            doc = getattr(item, "__doc__", None)
            if isinstance(doc, str):
                kind = "class" if inspect.isclass(item) else "function"
                yield Exchange(module, f"What does the {kind} `{module}.{path}` do?", inspect.cleandoc(doc))


def _topic_exchanges() -> Iterator[Exchange]:
    """The language topics of `help()`, cut at section borders where they are long."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for topic, text in sorted(topics.items()):
        for part, section in enumerate(_paragraph_groups(inspect.cleandoc(text))):
            question = f"Explain the Python topic `{topic}`." if part == 0 else f"Tell me more about `{topic}`."
            yield Exchange(f"topic.{topic}", question, section)


def _paragraph_groups(text: str, limit: int = 2500) -> Iterator[str]:
    """Join paragraphs of `text` to groups of at most about `limit` characters."""
    group = ""
    for paragraph in text.split("\n\n"):
        if group and len(group) + len(paragraph) > limit:
            yield group
            group = ""
        group = f"{group}\n\n{paragraph}" if group else paragraph
    if group:
        yield group
