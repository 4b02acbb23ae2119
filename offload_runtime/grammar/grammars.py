"""Makes the rules of response formats for one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from loaders.message_text import first_line, quoted
from loaders.tokenizers.trial import panics_explained
from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.grammar.calls import CallTokens
from offload_runtime.grammar.compiled import compiled
from offload_runtime.grammar.forced_call import forced_call
from offload_runtime.grammar.grammar_rule import GrammarRule
from offload_runtime.grammar.masks import Masks
from offload_runtime.grammar.response_format import grammar_of
from offload_runtime.grammar.thoughts import ANSWER, Thoughts
from offload_runtime.grammar.trial import check_grammar, check_installed
from offload_runtime.text.tools.call_formats import HARMONY_CALLS, call_format
from offload_runtime.text.tools.call_frame import call_frame
from offload_runtime.text.tools.tool_definitions import Tools, template_for
from sequoia_tree.shaping.order import Bounds
from sequoia_tree.shaping.settings import Sampling

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase

_SAMPLE = '{"a": [-1.5e3, true, null], "b c": "«\\n»"}'


class Grammars:
    """tokenizer: of the model, None if it has none. vocab_size: of its logits."""

    def __init__(self, tokenizer: "Callable[[], PreTrainedTokenizerBase] | None", vocab_size: int):
        self._find, self._vocab_size = tokenizer, vocab_size

    def bind(self, response_format: object, sampling: Sampling, bounds: Bounds, thinks: bool, tools: Tools) -> Sampling:
        """`sampling` with the rule of a response format, after its other rules.

        thinks: whether the reply may begin with thoughts that are no part of its answer. tools: what it may call in
        place of an answer. Raises UsageError for formats that cannot be followed: no JSON schema, none that llguidance
        can compile, or not with this tokenizer.
        """
        grammar = grammar_of(response_format)
        if grammar is None:
            return sampling
        self._check(grammar, "response_format: the schema", bounds)
        assert self._find is not None
        calls = CallTokens.of(self._find(), tools)
        whole = grammar_of(response_format, calls.begin) or grammar
        return self._bound(whole, "response_format: the schema", sampling, bounds, thinks, calls.end)

    def bind_call(
        self,
        tools: Tools,
        messages: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        sampling: Sampling,
        bounds: Bounds,
    ) -> Sampling:
        """`sampling` with the rule that the reply is a call of one of the tools that must be called.

        messages: of the conversation. arguments: of the chat template. Raises UsageError as `bind`.
        """
        llguidance = self._tokenizer  # first: it is checked that there is a tokenizer
        assert self._find is not None
        tokenizer = self._find()
        frame = call_frame(tokenizer, tools, arguments, messages)
        in_messages = call_format(template_for(tokenizer, tools)) is HARMONY_CALLS
        added = tokenizer.added_tokens_decoder.items()  # llguidance takes all that look like marks for special
        special = {str(token): number for number, token in added if llguidance.is_special_token(number)}
        grammar, tried = (forced_call(frame, tools, tools.forced, ids, in_messages) for ids in (special, {}))
        self._check(tried, "tool_choice: the call", bounds)
        return self._bound(grammar, "tool_choice: the call", sampling, bounds, thinks=not in_messages)

    def _check(self, grammar: str, asked: str, bounds: Bounds) -> None:
        """Raise UsageError where a grammar cannot be followed. asked: what it is for, in messages."""
        self._tokenizer  # noqa: B018  # first: without llguidance no grammar compiles
        if not any(0 <= token < self._vocab_size for token in bounds.end_tokens):
            raise UsageError(f"{asked.partition(':')[0]} needs a token that ends a text, and this model has none")
        check_grammar(grammar, asked)

    def _bound(
        self,
        grammar: str,
        asked: str,
        sampling: Sampling,
        bounds: Bounds,
        thinks: bool,
        call_end: int | None = None,
    ) -> Sampling:
        tokenizer = self._tokenizer
        matcher, fault = compiled(tokenizer, grammar)
        if fault:
            raise UsageError(f"{asked} cannot be followed: {quoted(fault, 300)}")
        thoughts = self._thoughts if thinks else None
        begin = thoughts.begin(bounds.prompt) if thoughts else ANSWER
        masks = Masks(matcher, bounds.end_tokens, self._vocab_size, (tokenizer.eos_token,), thoughts, begin, call_end)
        return replace(sampling, rules=(*sampling.rules, GrammarRule(masks, len(bounds.prompt))))

    @cached_property
    def _thoughts(self) -> Thoughts:
        assert self._find is not None
        return Thoughts(self._find())

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        """The tokenizer as llguidance needs it; building it takes a second for 131,072 tokens."""
        check_installed()
        from llguidance.hf import from_tokenizer

        if self._find is None:
            raise UsageError("response_format needs a tokenizer, and this model comes without one")
        tokenizer = self._find()
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise _unfit(f"it is a {type(tokenizer).__name__}, not one of the tokenizers library")
        # llguidance wants one; what ends a text is settled for each request
        marks = (tokenizer.eos_token_id, *tokenizer.all_special_ids)
        end = next((token for token in marks if type(token) is int), None)
        if end is None:
            raise _unfit("it has no special token")
        try:
            with panics_explained("the model"):
                made = from_tokenizer(tokenizer, max(self._vocab_size, len(tokenizer)), end)
                sample = tokenizer(_SAMPLE, add_special_tokens=False).input_ids
                ids = [token for token in sample if token not in tokenizer.all_special_ids]
                read, meant = made.decode_str(ids).strip(), str(tokenizer.decode(ids)).strip()
        except (ValueError, OffloadError) as error:
            raise _unfit(first_line(error)) from error
        if read != meant:
            raise _unfit(f"it reads {quoted(meant)} as {quoted(read)}")
        return made


def _unfit(reason: str) -> UsageError:
    return UsageError(
        f"response_format and tool_choice: llguidance cannot use this model's tokenizer: {quoted(reason, 200)}"
    )
