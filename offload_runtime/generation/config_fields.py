"""Readers for the fields of a generation config: each checks its value and knows what transformers treats as off.

Every reader raises a ValueError that says what its field must be. Imports no torch.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loaders.checkpoint.model_source import model_source
from loaders.json_files import read_json

_LARGEST_BIAS = 1e30  # so that sums of them stay float32


def number(value: Any) -> float:
    """Any number, but not true or false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number")
    return value


def whole_number(value: Any) -> int:
    """A whole number; 50.0 counts as one."""
    if not math.isfinite(number(value)) or value != int(value):
        raise ValueError("a whole number")
    return int(value)


def count(value: Any) -> int:
    """A whole number; 0 and less mean off."""
    return max(whole_number(value), 0)


def at_least_1(value: Any) -> int:
    """A whole number from 1 up."""
    if whole_number(value) < 1:
        raise ValueError("a whole number from 1 up")
    return int(value)


def at_most_1(value: Any) -> float:
    """A number; 1 and more mean off."""
    return min(number(value), 1.0)


def between_0_and_1(value: Any) -> float:
    """A number strictly between 0 and 1; others mean off."""
    return value if 0 < number(value) < 1 else 0.0


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def tokens(value: Any) -> tuple[int, ...]:
    """A list of token ids."""
    try:
        return tuple(map(whole_number, value if isinstance(value, list) else [None]))
    except ValueError:
        raise ValueError("a list of token ids") from None


def one_or_more_tokens(value: Any) -> tuple[int, ...]:
    """A token id or a list of them."""
    try:
        return tokens(value if isinstance(value, list) else [value])
    except ValueError:
        raise ValueError("a token id or a list of them") from None


def token(value: Any) -> int:
    """A token id."""
    try:
        return whole_number(value)
    except ValueError:
        raise ValueError("a token id") from None


def sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of lists of token ids; empty ones are ignored."""
    try:
        return tuple(filter(None, map(tokens, value)))
    except (TypeError, ValueError):
        raise ValueError("a list of lists of token ids") from None


def sequence_bias(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """A list of [token ids, bias]; of equal sequences the last counts. A bias of -Infinity forbids a sequence."""
    try:
        biases = {tokens(sequence): bias(amount) for sequence, amount in value}
    except (TypeError, ValueError):
        raise ValueError("a list of [list of token ids, bias]") from None
    return tuple((sequence, amount) for sequence, amount in biases.items() if sequence)


def bias(value: Any) -> float:
    """A value to add to a score: -inf, or a number within float32's range."""
    if not abs(number(value)) <= _LARGEST_BIAS and value != -math.inf:
        raise ValueError("a number from -1e30 to 1e30, or -inf")
    return float(value)


def decay(value: Any) -> tuple[int, float]:
    """[tokens before it begins, factor per token]."""
    try:
        start, factor = value
        if not 0 < number(factor) <= 1e6:
            raise ValueError
        return whole_number(start), float(factor)
    except (TypeError, ValueError):
        raise ValueError("[whole number, factor above 0]") from None


def texts(value: Any) -> tuple[str, ...]:
    """A text that is not empty, or a list of them."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise ValueError("a text or a list of them, none empty")
    return tuple(found)


Reader = Callable[[Any], Any]
SAMPLING: dict[str, Reader] = {
    **dict.fromkeys(("temperature", "min_p", "top_h", "repetition_penalty", "encoder_repetition_penalty"), number),
    "top_k": count,
    **dict.fromkeys(("top_p", "typical_p"), at_most_1),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), between_0_and_1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), count),
}
TOKEN_RULES: dict[str, Reader] = {
    "sequence_bias": sequence_bias,
    "bad_words_ids": sequences,
    "suppress_tokens": tokens,
    "begin_suppress_tokens": tokens,
    "forced_bos_token_id": token,
    "forced_eos_token_id": one_or_more_tokens,
    "exponential_decay_length_penalty": decay,
    "remove_invalid_values": flag,
}
LIMITS: dict[str, Reader] = {"max_new_tokens": at_least_1, "max_length": at_least_1, "stop_strings": texts}

# Fields with which transformers writes another text than this runtime, and the values that have no effect.
_UNAPPLIED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale"), (1, 1.0)),
    **dict.fromkeys(("penalty_alpha", "diversity_penalty", "max_time"), (0, 0.0)),
    "token_healing": (False,),
    **dict.fromkeys(("watermarking_config", "constraints", "force_words_ids", "dola_layers"), ()),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "assistant_ensemble_weight"), ()),
    **dict.fromkeys(("use_mtp", "speculation_type"), (False,)),
}
_OF_CONFIG = SAMPLING.keys() - {"min_length", "min_new_tokens"} | TOKEN_RULES.keys() | {"do_sample", "num_beams"}


def stated_fields(model: Path) -> tuple[Path, dict[str, Any]]:
    """The file of the model's generation config, and its fields. Raises ModelFilesError.

    Older models have these fields in config.json, which applies without a generation_config.json, as in transformers.
    Lengths are left out: many files say 20, which transformers treats as unset.
    """
    path, *older = model_source(model).generation_config_files
    if path.exists():
        return path, read_json(path)
    config = next(filter(Path.is_file, older), None)
    if config is None:
        return path, {}
    outer = read_json(config)
    inner = outer.get("text_config")
    values = (inner if isinstance(inner, dict) else {}) | {name: value for name, value in outer.items() if value}
    return config, {name: values[name] for name in values.keys() & _OF_CONFIG}


def unapplied_note(model: Path) -> str | None:
    """A note on fields of the model's generation config that are set but not applied; None if there are none.

    Raises ModelFilesError for a file that cannot be read.
    """
    path, stated = stated_fields(model)
    found = [
        f"{name}={stated[name]!r:.60}"
        for name, off in _UNAPPLIED.items()
        if stated.get(name) is not None and stated[name] not in off
    ]
    if not found:
        return None
    return (
        f"{path.name} asks for {', '.join(found)}, which this runtime does not apply: "
        "transformers' generate would write another text or end it elsewhere"
    )
