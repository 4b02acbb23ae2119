"""The draft: a resident model that extends the nodes of a tree while it is built."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offload_runtime.model.attention import PassRows
from offload_runtime.model.model import Model
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


class Draft:
    """Reads the text, then nodes of a tree after it, and gives the logits of the token after each.

    vocab_size: of the target; logits have this size, whatever the padding of the draft's own vocabulary.
    most_rows: most rows of one pass while it reads text.
    """

    def __init__(self, model: Model, vocab_size: int, most_rows: int):
        self.model = model
        self._vocab_size, self._most_rows = vocab_size, most_rows

    @torch.inference_mode()
    def read(self, text: Sequence[int]) -> Tensor:
        """Bring the cache up to the end of `text`; logits ``[1, vocab]`` after it."""
        cache = self.model.cache
        cache.truncate(len(text) - 1)
        known = [min(token, self.model.vocab_size - 1) for token in text[cache.length :]]
        return self._fit(self.model.read(known, self._most_rows))

    @torch.inference_mode()
    def forward(self, tokens: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Logits ``[r, vocab]`` after r new nodes with these `tokens`; the cache holds the tree's earlier nodes.

        depths: int64 [columns], of the earlier nodes and then the new ones. visible: bool [r, columns], whether a
        column is the new node itself or one of its ancestors.
        """
        past = self.model.cache.length
        inputs = tokens.clamp(0, self.model.vocab_size - 1)
        return self._fit(self.model.forward(inputs, PassRows(past, past - 1 + depths, visible), len(inputs)))

    def commit(self, columns: Sequence[int]) -> None:
        """Append the given rows of the tree to the text and drop the others."""
        self.model.cache.commit(columns)

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
