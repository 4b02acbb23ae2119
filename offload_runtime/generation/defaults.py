"""The sampling defaults and end tokens in a model's generation config."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from loaders.checkpoint.model_source import model_source
from offload_runtime.errors import ModelFilesError, UsageError
from offload_runtime.generation import config_fields as generation_fields
from offload_runtime.options.fields import nearest
from sequoia_tree.shaping.order import TokenRules
from sequoia_tree.shaping.settings import Sampling


@dataclass(frozen=True)
class GenerationDefaults:
    """The values for arguments that a caller leaves out.

    end_token_ids: None if the file has none; those of config.json apply then. max_length: tokens in prompt and reply;
    max_new_tokens takes precedence.
    """

    sampling: Sampling
    end_token_ids: frozenset[int] | None
    token_rules: TokenRules
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_strings: tuple[str, ...] = ()


SAMPLING_NAMES = tuple(field.name for field in fields(Sampling) if field.compare)


def read_generation_defaults(model: Path) -> GenerationDefaults:
    """Read generation_config.json, or else config.json. Without `do_sample` the model decodes greedily.

    Raises ModelFilesError if the file holds invalid values.
    """
    path, stated = generation_fields.stated_fields(model)
    values = _read(path, stated, generation_fields.SAMPLING)
    if not stated.get("do_sample"):
        values["temperature"] = 0.0
    try:
        sampling = Sampling(**values)
    except (TypeError, ValueError) as error:
        raise ModelFilesError(f"{path}: {error}. Correct or remove that value.") from error
    return GenerationDefaults(
        sampling=sampling,
        end_token_ids=_end_tokens(path, stated["eos_token_id"]) if "eos_token_id" in stated else None,
        token_rules=TokenRules(**_read(path, stated, generation_fields.TOKEN_RULES)),
        **_read(path, stated, generation_fields.LIMITS),
    )


def model_end_tokens(model: Path, of_config: int | list[int] | None) -> frozenset[int]:
    """The tokens that end a text: those of the generation config, else `of_config`. Raises ModelFilesError."""
    stated = read_generation_defaults(model).end_token_ids
    return _end_tokens(model_source(model).config_file, of_config) if stated is None else stated


def _end_tokens(path: Path, stated: object) -> frozenset[int]:
    reader = {"eos_token_id": generation_fields.one_or_more_tokens}
    return frozenset(_read(path, {"eos_token_id": stated}, reader).get("eos_token_id", ()))


def _read(path: Path, stated: Mapping[str, Any], readers: Mapping[str, generation_fields.Reader]) -> dict[str, Any]:
    """The fields that are stated and have a reader."""
    values = {}
    for name, reader in readers.items():
        if stated.get(name) is None:
            continue
        try:
            values[name] = reader(stated[name])
        except ValueError as error:
            raise ModelFilesError(
                f"{path}: {name} must be {error}, not {stated[name]!r:.80}. Correct or remove that value."
            ) from error
    return values


def override(sampling: Sampling, **values: float | int | None) -> Sampling:
    """`sampling` with the values that are not None. Raises UsageError for an invalid value or an unknown name."""
    unknown = sorted(set(values) - set(SAMPLING_NAMES))
    if unknown:
        raise UsageError(f"there is no sampling value {unknown[0]!r}; {nearest(unknown[0], SAMPLING_NAMES)}")
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    try:
        return replace(sampling, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
