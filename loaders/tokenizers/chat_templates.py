"""Finds a model's chat template: in its own file, in the tokenizer's files, or by the model's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.json_files import read_json, read_regular

ADDITIONAL = "additional_chat_templates"
_FOR_TOOLS = "tool_use"
_FOR_OTHER_USES = (_FOR_TOOLS, "rag")  # repositories' names of templates for tools and for documents
_LARGEST = 4 << 20  # bytes; published templates have at most 100 KB

# Vicuna 1.1 and later, as FastChat, which they were trained with, writes prompts.
_VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
    "{% else %}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.{% set turns = messages %}{% endif %} "
    "{% for message in turns %}{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('the roles are system, user and assistant') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_BY_WORD = {"vicuna": _VICUNA}


def chat_template_of(directory: Path, for_tools: bool = False) -> str | None:
    """The template of the model in a directory; None if it has none. Raises ModelFilesError for damaged files.

    Template files win over tokenizer_config.json, as in transformers; older processors wrote chat_template.json.
    for_tools: the one that is only for prompts with tools.
    """
    stated, files = _in_config(directory / "tokenizer_config.json"), _in_files(directory)
    templates = stated | files or _in_config(directory / "chat_template.json")
    if for_tools:
        return (files or templates).get(_FOR_TOOLS)
    return chosen(templates) or known_template(directory)


def gguf_chat_template(metadata: Mapping[str, object], for_tools: bool = False) -> str | None:
    """The template in a GGUF file's metadata: tokenizer.chat_template, or one of the named templates.

    for_tools: the one that is only for prompts with tools.
    """
    key = "tokenizer.chat_template"
    texts = {name: text for name, text in metadata.items() if name.startswith(key) and isinstance(text, str)}
    named = {name.removeprefix(key).removeprefix(".") or "default": text for name, text in texts.items()}
    return named.get(_FOR_TOOLS) if for_tools else chosen(named)


def chosen(templates: Mapping[str, str]) -> str | None:
    """The conversation template among named ones."""
    if "default" in templates:
        return templates["default"]
    plain = [text for name, text in templates.items() if name not in _FOR_OTHER_USES]
    return next(iter([*plain, *templates.values()]), None)


def read_template(file: Path) -> str:
    """The template in a file. Raises ModelFilesError."""
    try:
        return read_regular(file, _LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ModelFilesError(f"{file}: holds no chat template: it is not UTF-8 text.") from error
    except ValueError as error:
        raise ModelFilesError(f"{file}: holds no chat template: {error}.") from error


def _in_files(directory: Path) -> dict[str, str]:
    files = {"default": directory / "chat_template.jinja"}
    files |= {file.name.removesuffix(".jinja"): file for file in sorted((directory / ADDITIONAL).glob("*.jinja"))}
    return {name: read_template(file) for name, file in files.items() if file.is_file()}


def _in_config(file: Path) -> dict[str, str]:
    """The templates in a JSON file: one text, or a list of {"name", "template"}."""
    stated: Any = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(stated, str):
        return {"default": stated}
    if isinstance(stated, list) and all(isinstance(one, dict) for one in stated):
        stated = {one.get("name"): one.get("template") for one in stated}
    texts = [text for pair in stated.items() for text in pair] if isinstance(stated, dict) else [stated]
    if stated is not None and not all(isinstance(text, str) for text in texts):
        raise ModelFilesError(f"{file}: chat_template is neither a text nor a list of named texts.")
    return stated or {}


def known_template(directory: Path) -> str | None:
    """The template of a model recognized by its directory's or hub name, since its files hold none."""
    parts = directory.absolute().parts
    names = [parts[-1], *(part for part in parts if part.startswith("models--"))]
    return next((text for word, text in _BY_WORD.items() if any(word in name.lower() for name in names)), None)
