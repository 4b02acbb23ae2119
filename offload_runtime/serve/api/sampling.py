"""The fields that say how a text is written: one reader for every form of request."""

from typing import Any

from offload_runtime.options.sampling_options import SAMPLING
from offload_runtime.serve.api.fields import Fields, bad, shown

MOST_STOPS, LONGEST_STOP = 64, 1024
MOST_NEW_TOKENS = 1 << 31
MOST_BIAS = 100.0  # as in OpenAI's form
# metavar: N of whole numbers, X of others. The limit of new tokens has other names here.
NUMBERS = tuple(name for name, one in SAMPLING.items() if one.metavar in ("N", "X") and name != "max_new_tokens")


def read_sampling(fields: Fields) -> dict[str, Any]:
    """Keyword arguments for `OffloadRuntime.stream`; what is left out stays with the model's generation config."""
    found: dict[str, Any] = read_numbers(fields)
    found["stop"] = fields.texts("stop", MOST_STOPS, LONGEST_STOP)
    found["dry_sequence_breakers"] = fields.texts("dry_sequence_breakers", MOST_STOPS, LONGEST_STOP)
    found["logit_bias"] = _logit_bias(fields)
    return {name: value for name, value in found.items() if value is not None}


def read_numbers(fields: Fields) -> dict[str, Any]:
    """Those of the arguments that are numbers."""
    found = {}
    for name in NUMBERS:
        one = SAMPLING[name]
        found[name] = fields.parsed(name, one.parse, whole=one.metavar == "N")
    return {name: value for name, value in found.items() if value is not None}


def read_most_tokens(fields: Fields, *names: str) -> dict[str, int]:
    """The limit of new tokens, which clients call by several names."""
    found = {name: value for name in names if (value := fields.whole(name, 1, MOST_NEW_TOKENS)) is not None}
    if len({*found.values()}) > 1:
        raise bad(min(found), f"differs from {max(found)}: give one of them")
    return {"max_new_tokens": next(iter(found.values()))} if found else {}


def seeds(seed: int | None, count: int) -> list[int | None]:
    """A seed for each of several texts that are written to one prompt."""
    return [None if seed is None else (seed + number) % 2**63 for number in range(count)]


def _logit_bias(fields: Fields) -> dict[int, float] | None:
    given = fields.mapping("logit_bias")
    if given is None:
        return None
    found: dict[int, float] = {}
    for name, amount in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) <= 10):
            raise bad("logit_bias", f"{shown(name)} is no token id: its names are whole numbers")
        if type(amount) not in (int, float) or not -MOST_BIAS <= amount <= MOST_BIAS:
            raise bad("logit_bias", f"the bias of token {name} must be a number from -100 to 100, not {shown(amount)}")
        found[int(name)] = float(amount)
    return found
