"""Tokenizers from a model's files, and what they call their tokens.

Importing this package imports neither torch nor transformers: the names that need them are imported when asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loaders.tokenizers.load import check_same_tokens, has_tokenizer, load_tokenizer

__all__ = ["check_same_tokens", "has_tokenizer", "load_tokenizer"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from loaders.tokenizers import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
