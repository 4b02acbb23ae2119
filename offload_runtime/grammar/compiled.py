"""Compiles grammars with llguidance, within limits on what they may cost. A child process imports it: nothing heavy."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Lexer states take 1 to 2 kB each, so 100 MB for each text. What a step may cost stays llguidance's own: some 20 ms.
_MOST_LEXER_STATES, _MOST_SYMBOLS = 50_000, 100_000
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # in the grammar around the schema
_EXCERPT = re.compile(r"^ *\d+ \| |^<", re.MULTILINE)  # of that grammar, or of the parser's state


def compiled(tokenizer: "LLTokenizer", grammar: str) -> "tuple[LLMatcher, str]":
    """A matcher at the beginning of a text, and what is wrong with the grammar: "" if nothing is."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=_MOST_LEXER_STATES, max_grammar_size=_MOST_SYMBOLS, verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some errors show only now
    return matcher, fault(matcher)


def fault(matcher: "LLMatcher") -> str:
    """What went wrong in a matcher, in one line; "" if nothing did."""
    message = _EXCERPT.split(matcher.get_error())[0]
    return " ".join(_PLACE.sub("", message).split())
