"""How a request is sampled: numbers named as in a generation config, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from sequoia_tree.shaping.rule import Rule

_INF = float("inf")


@dataclass(frozen=True)
class Sampling:
    """How logits become a distribution, in numbers named as in a generation config; all are off by default.

    rules: what else shapes the scores, bound to one request (`sequoia_tree.shaping.order`). They are left out of
    comparisons: what is learnt about one sampling holds for all its requests. ValueError for values out of range.
    """

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # 1: off
    top_h: float | None = None
    typical_p: float = 1.0  # 1: off
    epsilon_cutoff: float = 0.0  # 0 and 1: off
    eta_cutoff: float = 0.0  # 0 and 1: off
    xtc_probability: float = 0.0  # 0: off
    xtc_threshold: float = 0.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 0  # 0: the whole text
    encoder_repetition_penalty: float = 1.0  # 1: off
    no_repeat_ngram_size: int = 0  # 0: off
    encoder_no_repeat_ngram_size: int = 0  # 0: off
    min_length: int = 0  # of prompt and reply
    min_new_tokens: int = 0  # 0: min_length holds
    rules: tuple[Rule, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, (fits, meaning) in _ALLOWED.items():
            value: Any = getattr(self, name)
            if name == "top_h" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, not {value!r:.80}")
            if not fits(value):  # type: ignore[arg-type]
                raise ValueError(f"{name} must be {meaning}, got {value!r:.80}")
        for name in _WHOLE:
            object.__setattr__(self, name, min(int(getattr(self, name)), _LARGEST))


_WHOLE = (
    *("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"),
    *("dry_allowed_length", "dry_penalty_last_n"),
)
# What values may be: beyond it a score could leave float32, and then nothing can be drawn.
_LARGEST, _LARGEST_FACTOR = 10**9, 1e6
_Allowed = tuple[Callable[[float], bool], str]
_ZERO_TO_ONE: _Allowed = (lambda x: 0 <= x <= 1, "from 0 to 1")
_FACTOR: _Allowed = (
    lambda x: 1 / _LARGEST_FACTOR <= x <= _LARGEST_FACTOR,
    "from 0.000001 to 1,000,000; 1 is off",
)
_SUMMAND: _Allowed = (lambda x: abs(x) <= _LARGEST, "from -1e9 to 1e9; 0 is off")
_COUNT: _Allowed = (lambda x: 0 <= x < _INF and x == int(x), "a whole number, 0 (off) or more")
_ALLOWED: dict[str, _Allowed] = {
    "temperature": (lambda x: 0 <= x <= _LARGEST, "from 0 (greedy) to 1e9"),
    "top_p": (lambda x: 0 <= x <= 1, "from 0 to 1 (off)"),
    "min_p": (lambda x: 0 <= x <= 1, "from 0 (off) to 1"),
    "top_h": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "typical_p": (lambda x: 0 < x <= 1, "above 0 and at most 1 (off)"),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "xtc_probability", "xtc_threshold"), _ZERO_TO_ONE),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), _FACTOR),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _SUMMAND),
    "dry_multiplier": (lambda x: 0 <= x <= _LARGEST_FACTOR, "from 0 (off) to 1,000,000"),
    "dry_base": (lambda x: 1 <= x <= _LARGEST_FACTOR, "from 1 to 1,000,000"),
    **dict.fromkeys(_WHOLE, _COUNT),
}
