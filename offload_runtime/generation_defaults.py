"""How a model's own generation config wants it sampled, and which tokens end its text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loaders.json_files import read_json
from loaders.model_files import generation_config_file
from offload_runtime.errors import ModelFilesError, UsageError
from sequoia_tree.sampling import Sampling


@dataclass(frozen=True)
class GenerationDefaults:
    """What applies where a caller says nothing."""

    sampling: Sampling
    end_token_ids: frozenset[int]


SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_generation_defaults(model: Path, config_end_tokens: int | list[int] | None) -> GenerationDefaults:
    """Read generation_config.json, which may be absent. Without `do_sample` the model decodes greedily.

    Raises ModelFilesError where the file holds values that no sampling can have.
    """
    path = generation_config_file(model)
    stated: Mapping[str, Any] = read_json(path) if path.exists() else {}
    values = {name: stated[name] for name in SAMPLING_FIELDS if stated.get(name) is not None}
    if not stated.get("do_sample"):
        values["temperature"] = 0.0
    stated_ends = stated.get("eos_token_id", config_end_tokens)
    end_tokens = [stated_ends] if isinstance(stated_ends, int) else stated_ends or []
    if not isinstance(end_tokens, list) or not all(isinstance(token, int) for token in end_tokens):
        raise ModelFilesError(f"{path}: eos_token_id must be a token id or a list of them, not {stated_ends!r}.")
    try:
        sampling = Sampling(**values)
    except (TypeError, ValueError) as error:
        raise ModelFilesError(f"{path}: {error}. Correct or remove the file.") from error
    return GenerationDefaults(sampling, frozenset(end_tokens))


def override(sampling: Sampling, **values: float | int | None) -> Sampling:
    """`sampling` with the values that are not None. Raises UsageError for a value that cannot be."""
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    try:
        return replace(sampling, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except TypeError as error:
        raise UsageError(f"sampling values must be numbers, not {given}") from error
