"""How a reply is sampled, as a user says it on the command line or in the chat. Imports no torch."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from offload_runtime.errors import UsageError
from offload_runtime.options.readers import real_number, texts, token_biases, whole_number


@dataclass(frozen=True)
class SamplingOptions:
    """How a reply is sampled; None leaves a value to the model's generation config, and makes a fresh seed.

    The field names are those of `OffloadRuntime.stream`.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: tuple[str, ...] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    stop: tuple[str, ...] | None = None
    max_new_tokens: int | None = None
    seed: int | None = None

    def with_value(self, name: str, text: str) -> "SamplingOptions":
        """A copy with one value read from text, "default" standing for None. Raises UsageError with the reason."""
        if name not in SAMPLING:
            raise UsageError(f"there is no value {name!r}; there are {', '.join(SAMPLING)}")
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
            options = options.with_value(name, "default" if value is None else text)
            if isinstance(value, list) and [*getattr(options, name)] != value:
                raise UsageError(f"{name}: {value!r:.80} is no list of texts")
        return options

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `OffloadRuntime.stream`, which JSON can hold."""
        biases = None if self.logit_bias is None else dict(self.logit_bias)
        return {**asdict(self), "logit_bias": biases}


@dataclass(frozen=True)
class SamplingValue:
    """One entry of `SAMPLING`: how its text is read and checked, and what it means.

    repeats: the option may be given several times, and its values add up.
    """

    parse: Callable[[str], Any]
    help: str
    metavar: str = "X"
    repeats: bool = False


_SUMMAND, _FACTOR = real_number(-1e9, 1e9), real_number(1e-6, 1e6)
SAMPLING: dict[str, SamplingValue] = {
    "temperature": SamplingValue(real_number(0, 1e9), "0 takes the likeliest token always"),
    "top_p": SamplingValue(real_number(0, 1, above=True), "keep the likeliest tokens of this total probability"),
    "top_k": SamplingValue(whole_number(0), "keep this many of the likeliest tokens; 0 keeps all", "N"),
    "min_p": SamplingValue(real_number(0, 1), "drop tokens less likely than this share of the likeliest"),
    "repetition_penalty": SamplingValue(_FACTOR, "above 1 makes tokens that occurred less likely"),
    "presence_penalty": SamplingValue(_SUMMAND, "taken off the logits of tokens that the reply holds"),
    "frequency_penalty": SamplingValue(_SUMMAND, "taken off as often as the reply holds the token"),
    "logit_bias": SamplingValue(token_biases, "added to the logits of tokens: 15=-2,16=1", "ID=X", repeats=True),
    "dry_multiplier": SamplingValue(real_number(0, 1e6), "DRY: strength against repeated sequences; 0 is off"),
    "dry_base": SamplingValue(real_number(1, 1e6), "DRY: the penalty grows by this factor per token"),
    "dry_allowed_length": SamplingValue(whole_number(0), "DRY: repeated tokens from which it counts", "N"),
    "dry_penalty_last_n": SamplingValue(whole_number(0), "DRY: tokens it looks back over; 0: all", "N"),
    "dry_sequence_breakers": SamplingValue(texts, "DRY: texts that end a sequence", "TEXT", repeats=True),
    "xtc_probability": SamplingValue(real_number(0, 1), "XTC: how often top choices are left out; 0 is off"),
    "xtc_threshold": SamplingValue(real_number(0, 1), "XTC: probability from which a token is a top choice"),
    "stop": SamplingValue(texts, r"end the reply before this text; \n is a new line", "TEXT", repeats=True),
    "max_new_tokens": SamplingValue(whole_number(1), "stop a reply after this many tokens", "N"),
    "seed": SamplingValue(whole_number(0, 2**63 - 1), "make a reply repeatable; a fresh one is drawn otherwise", "N"),
}


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how to sample; `sampling_options` reads them back."""
    group = parser.add_argument_group("sampling", "What is not given comes from the model's generation config.")
    for name, value in SAMPLING.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=value.metavar,
            type=value.parse,
            action="extend" if value.repeats else "store",
            help=value.help,
        )


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The sampling options in parsed arguments."""
    given = ((name, getattr(arguments, name)) for name in SAMPLING)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given}
    return SamplingOptions(**values)
