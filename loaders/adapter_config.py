"""An adapter in the place of a model: what its config calls the model it is for, and what to say. No torch."""

from pathlib import Path

from loaders.foreign_files import ADAPTER_CONFIG
from loaders.json_files import read_json
from loaders.message_text import quoted


def base_of(directory: Path) -> str:
    """What an adapter's config calls the model that it was made for; empty where it does not say."""
    base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def adapter_alone(adapter: str, base: str) -> str:
    """What to say where an adapter, a directory or a name, was given in the place of a model."""
    return (
        f"{adapter}: it is an adapter, made for {called(base)}, and holds no model. Run it on that:\n"
        f"  --model {quoted(base, 200) if base else 'MODEL'} --adapter {adapter}"
    )


def called(base: str) -> str:
    """The base in a sentence."""
    return quoted(base) if base else "a model that it does not name"
