"""An adapter given instead of a model: the base model that its config names, and what to tell the user. No torch."""

from pathlib import Path

from loaders.foreign_files import ADAPTER_CONFIG
from loaders.json_files import read_json
from loaders.message_text import quoted


def base_of(directory: Path) -> str:
    """The base model that an adapter's config names; empty where it names none."""
    base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def adapter_alone(adapter: str, base: str) -> str:
    """The message where an adapter (a directory or a name) was given instead of a model."""
    return (
        f"{adapter}: it is an adapter, made for {called(base)}, and holds no model. Run it on that:\n"
        f"  --model {quoted(base, 200) if base else 'MODEL'} --adapter {adapter}"
    )


def called(base: str) -> str:
    """The base model, worded for the middle of a sentence."""
    return quoted(base) if base else "a model that it does not name"
