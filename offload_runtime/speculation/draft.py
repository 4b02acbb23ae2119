"""The draft: a resident model that extends the nodes of a tree while it is built."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from offload_runtime.model.model import Model
from offload_runtime.model.pass_part import PassPart, run_parts, text_part
from offload_runtime.model.rows import PassRows
from sequoia_tree.shaping.contexts import Contexts
from sequoia_tree.shaping.rule import drawable
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.sampling import (
    bounded_log_distribution,
    first_width,
    into_probabilities,
    log_probs,
    processed,
)

Result = TypeVar("Result")
Growth = Generator[PassPart, Tensor, Result]
"""Work that asks for passes of the draft: it yields its part of each and is sent the logits ``[wanted, vocab]``."""


class Draft:
    """Reads texts, then nodes of a tree after each, and gives the logits of the token after them.

    vocab_size: of the target; logits have this size, whatever the padding of the draft's own vocabulary.
    most_rows: most rows of one pass.
    """

    root_is_text = True
    """Whether the row of a tree's root is committed with the text before it, rather than the first of the tree's."""

    def __init__(self, model: Model, vocab_size: int, most_rows: int):
        self.model = model
        self._vocab_size, self._most_rows = vocab_size, most_rows

    @torch.inference_mode()
    def run(self, parts: Sequence[PassPart]) -> list[Tensor]:
        """The logits ``[wanted, vocab]`` of each part; parts of several texts share passes."""
        return [self._fit(logits) for logits in run_parts(self.model, parts, self._most_rows)]

    def reading(self, text: Sequence[int], sequence: int = 0) -> Growth[Tensor]:
        """Bring a sequence of the cache up to the end of `text`; returns logits ``[1, vocab]`` after it."""
        cached = self.model.cache.sequences[sequence]
        cached.truncate(len(text) - 1)
        logits = None
        while cached.length < len(text):
            piece = text[cached.length : cached.length + self._most_rows]
            known = [min(token, self.model.vocab_size - 1) for token in piece]
            logits = yield text_part(self.model, known, sequence, wanted=1)
            cached.commit(range(len(known)))
        assert logits is not None
        return logits

    def following(self, text: Sequence[int], sequence: int = 0) -> Growth[object]:
        """Read along with the target, which writes no tree after this text now."""
        return self.reading(text, sequence)

    def running(self) -> AbstractContextManager[None]:
        """Within the block, passes of `model` are the draft's, also where the target's model drafts for itself."""
        return nullcontext()

    def can_follow(self, unread: int, length: int) -> bool:
        """Whether it can draft after a text of `length` tokens, of which the target has `unread` to read."""
        return True

    def must_read(self, coming: int, sequence: int) -> bool:
        """Whether it has to read a text before a pass of the target over `coming` more rows of it."""
        return False

    def nodes(self, tokens: Tensor, depths: Tensor, visible: Tensor, sequence: int = 0) -> PassPart:
        """r new nodes with these `tokens`; the cache holds the tree's earlier nodes.

        depths: int64 [columns], of the earlier nodes (the root among them unless `root_is_text`) and then the new ones.
        visible: bool [r, columns], whether a column is the new node itself or one of its ancestors.
        """
        cached = self.model.cache.sequences[sequence]
        rows = PassRows(cached.length, cached.length - 1 + depths, visible, cached.first_row)
        return PassPart(tokens.clamp(0, self.model.vocab_size - 1), rows, len(tokens))

    def commit(self, columns: Sequence[int], sequence: int = 0) -> None:
        """Append the given rows of the tree to the text and drop the others."""
        self.model.cache.sequences[sequence].commit(columns)

    def _fit(self, logits: Tensor) -> Tensor:
        """Cut or pad ``[n, draft vocab]`` to the target's vocabulary; a padded token is never drawn."""
        surplus = self._vocab_size - logits.shape[1]
        return F.pad(logits, (0, surplus), value=-torch.inf) if surplus > 0 else logits[:, : self._vocab_size]


def draft_distribution(logits: Tensor, sampling: Sampling, contexts: Contexts | None) -> Tensor:
    """Log-probabilities ``[n, vocab]`` to draw from; at temperature 0, where nothing is drawn, without temperature.

    contexts: the tokens before each, if the sampling has rules that need them. A draft may use any distribution, as
    long as children are drawn from it and tested against it. So on a GPU, where top-p would keep more tokens than are
    examined, the least likely of them are left out.
    """
    if sampling.temperature:
        if width := first_width(logits, sampling):
            return bounded_log_distribution(logits, sampling, width, contexts)[0]
        return log_probs(logits, sampling, contexts)
    scores = processed(logits, sampling, contexts)
    return (drawable(scores, logits) if sampling.rules else scores).log_softmax(-1)


def joined(distributions: Sequence[Tensor], sampling: Sampling) -> Tensor:
    """The log-probabilities that children were drawn from, in the form of `DraftTree.distributions [rows, vocab]`."""
    table = torch.cat(list(distributions))
    return into_probabilities(table) if sampling.temperature else table
