"""Sampling options for the command line and the chat. Imports no torch."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from offload_runtime.errors import UsageError
from offload_runtime.options.fields import add_options, nearest, option, options_of, values_of
from offload_runtime.options.readers import real_number, response_format, texts, token_biases, whole_number

_SUMMAND, _FACTOR, _SHARE = real_number(-1e9, 1e9), real_number(1e-6, 1e6), real_number(0, 1)


def _value(help: str, parse: Callable[[str], Any], metavar: str = "X", repeats: bool = False) -> Any:
    return option(help, metavar, parse, repeats=repeats, group="sampling")


@dataclass(frozen=True)
class SamplingOptions:
    """How a reply is sampled. None takes the value of the model's generation config; for the seed, a fresh one.

    The field names are those of `OffloadRuntime.stream`; the flags and /set follow from the fields.
    """

    temperature: float | None = _value("0 takes the likeliest token always", real_number(0, 1e9))
    top_p: float | None = _value("keep the likeliest tokens of this total probability", real_number(0, 1, above=True))
    top_k: int | None = _value("keep this many of the likeliest tokens; 0 keeps all", whole_number(0), "N")
    min_p: float | None = _value("drop tokens less likely than this share of the likeliest", _SHARE)
    repetition_penalty: float | None = _value("above 1 makes tokens that occurred less likely", _FACTOR)
    presence_penalty: float | None = _value("taken off the logits of tokens that the reply holds", _SUMMAND)
    frequency_penalty: float | None = _value("taken off as often as the reply holds the token", _SUMMAND)
    logit_bias: tuple[tuple[int, float], ...] | None = _value(
        "added to the logits of tokens: 15=-2,16=1", token_biases, "ID=X", repeats=True
    )
    dry_multiplier: float | None = _value("DRY: strength against repeated sequences; 0 is off", real_number(0, 1e6))
    dry_base: float | None = _value("DRY: the penalty grows by this factor per token", real_number(1, 1e6))
    dry_allowed_length: int | None = _value("DRY: repeated tokens from which it counts", whole_number(0), "N")
    dry_penalty_last_n: int | None = _value("DRY: tokens it looks back over; 0: all", whole_number(0), "N")
    dry_sequence_breakers: tuple[str, ...] | None = _value(
        "DRY: texts that end a sequence", texts, "TEXT", repeats=True
    )
    xtc_probability: float | None = _value("XTC: how often top choices are left out; 0 is off", _SHARE)
    xtc_threshold: float | None = _value("XTC: probability from which a token is a top choice", _SHARE)
    stop: tuple[str, ...] | None = _value(
        r"end the reply before this text; \n is a new line", texts, "TEXT", repeats=True
    )
    response_format: Mapping[str, Any] | None = _value(
        "json, or a JSON schema that the answer follows, or its file", response_format, "json|SCHEMA"
    )
    max_new_tokens: int | None = _value("stop a reply after this many tokens", whole_number(1), "N")
    seed: int | None = _value(
        "make a reply repeatable; a fresh one is drawn otherwise", whole_number(0, 2**63 - 1), "N"
    )

    def with_value(self, name: str, text: str) -> "SamplingOptions":
        """A copy with one value read from text; "default" means None. Raises UsageError with the reason."""
        if name not in SAMPLING:
            raise UsageError(f"there is no value {name!r}; {nearest(name, SAMPLING)}")
        try:
            change: dict[str, Any] = {name: None if text == "default" else SAMPLING[name].parse(text)}
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{name}: {error}") from None
        return replace(self, **change)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> "SamplingOptions":
        """The inverse of `as_arguments`, for values from a file: UsageError for unknown names and bad values."""
        options = cls()
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            if name == "response_format" and text not in ("json", "null") and text[:1] != "{":
                raise UsageError(f"{name}: {value!r:.80} is no response format")  # least of all another file's name
            options = options.with_value(name, "default" if value is None else text)
            if isinstance(value, list) and [*getattr(options, name)] != value:
                raise UsageError(f"{name}: {value!r:.80} is no list of texts")
        return options

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `OffloadRuntime.stream`, which JSON can hold."""
        biases = None if self.logit_bias is None else dict(self.logit_bias)
        return {**asdict(self), "logit_bias": biases}


SAMPLING = options_of(SamplingOptions)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the sampling options; `sampling_options` reads them back."""
    group = parser.add_argument_group("sampling", "What is not given comes from the model's generation config.")
    add_options(group, SamplingOptions, "sampling")


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The sampling options in parsed arguments."""
    given = values_of(SamplingOptions, arguments).items()
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given}
    return SamplingOptions(**values)
