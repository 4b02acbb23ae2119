"""Chat templates of models that were published before repositories had any, and are in use still."""

from __future__ import annotations

from pathlib import Path

# Of version 1.1 and later, as FastChat, which they were trained with, writes it.
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


def known_template(directory: Path) -> str | None:
    """The template of a model that is known by its directory's name, or the hub's; nothing in its files tells it."""
    parts = directory.absolute().parts
    names = [parts[-1], *(part for part in parts if part.startswith("models--"))]
    return next((text for word, text in _BY_WORD.items() if any(word in name.lower() for name in names)), None)
