"""From the target's logits to the accepted path, under the request's sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from offload_runtime.speculation.draft_tree import DrawnTree
from sequoia_tree.laws import Laws
from sequoia_tree.sampling import Sampling, bounded_log_law, first_width, into_probabilities, log_law, processed, wider
from sequoia_tree.shaping.contexts import Contexts, Text
from sequoia_tree.uploads import upload_together
from sequoia_tree.verify import RULES, Verdict, follow, verify_greedy


@dataclass(frozen=True)
class Scored:
    """A drawn tree with the target's ``logits [n, vocab]`` at its nodes, under a text and a sampling.

    tokens: those of the nodes, int64 [n].
    """

    drawn: DrawnTree
    logits: Tensor
    sampling: Sampling
    tokens: Tensor
    contexts: Contexts | None
    _law_rows: Tensor

    @classmethod
    def of(cls, drawn: DrawnTree, logits: Tensor, text: Sequence[int], sampling: Sampling) -> "Scored":
        tokens, law_rows = upload_together([np.array(drawn.tokens), drawn.law_rows], logits.device)
        contexts = drawn.contexts(Text.of(text, logits.device), tokens) if sampling.rules else None
        return cls(drawn, logits, sampling, tokens, contexts, law_rows)

    @property
    def laws(self) -> Laws:
        return Laws(self._target_law, self.draft_law, self.logits.shape[-1])

    def laws_of_likeliest(self, width: int, enough: list[Tensor]) -> Laws:
        """The same with top-k and top-p looking at `width` tokens alone; `enough` gets whether these were enough."""

        def target(nodes: Tensor) -> Tensor:
            law, is_enough = bounded_log_law(self.logits[nodes], self.sampling, width, self._contexts(nodes))
            enough.append(is_enough)
            return into_probabilities(law)

        return replace(self.laws, target=target)

    def draft_law(self, nodes: Tensor) -> Tensor:
        """What the children of nodes, int64 [m], were drawn from, as in `DrawnTree.laws`: ``[m, vocab]``."""
        assert self.drawn.laws is not None
        return self.drawn.laws[self._law_rows[nodes]]

    def processed(self, nodes: Tensor) -> Tensor:
        """The target's logits ``[m, vocab]`` after the given nodes, int64 [m], before any temperature."""
        return processed(self.logits[nodes], self.sampling, self._contexts(nodes))

    def _target_law(self, nodes: Tensor) -> Tensor:
        return into_probabilities(log_law(self.logits[nodes], self.sampling, self._contexts(nodes)))

    def _contexts(self, nodes: Tensor) -> Contexts | None:
        return None if self.contexts is None else self.contexts[nodes]


@torch.inference_mode()
def verify(scored: Scored, rule: str, generator: torch.Generator) -> Verdict:
    """The path and the bonus token. `rule`, a key of `RULES`, is for nodes that were drawn; others are matched.

    The bonus token is -1 where the target's logits are NaN or infinite: no token can be told.
    """
    if scored.sampling.temperature == 0:
        nodes = torch.arange(scored.drawn.tree.size, device=scored.logits.device)
        pieces = nodes.split(scored.laws.most_rows(nodes.device))
        best = torch.cat([_likeliest(scored.processed(piece)) for piece in pieces])
        return verify_greedy(scored.drawn.tree, torch.as_tensor(scored.drawn.tokens), best)  # compared on the host
    width = first_width(scored.logits, scored.sampling)
    while width:
        state, enough = generator.get_state(), list[Tensor]()
        verdict = _sampled(scored, scored.laws_of_likeliest(width, enough), rule, generator)
        if torch.stack(enough).all():
            return verdict
        generator.set_state(state)  # so that what is found now depends on the laws alone, not on what was found before
        width = wider(width, scored.logits)
    return _sampled(scored, scored.laws, rule, generator)


def _sampled(scored: Scored, laws: Laws, rule: str, generator: torch.Generator) -> Verdict:
    drawn, tokens = scored.drawn, scored.tokens
    tree = drawn.drawn_part
    verdict = RULES[rule](tree, tokens[: tree.size], laws, generator)
    if tree.size < drawn.tree.size:
        verdict = follow(drawn.tree, tokens, verdict, range(tree.size, drawn.tree.size), laws, generator)
    return verdict


def _likeliest(scores: Tensor) -> Tensor:
    """The argmax of each row, int64 [m]; -1 where the largest score is no finite number."""
    largest, tokens = scores.max(dim=-1)
    return tokens.masked_fill(~largest.isfinite(), -1)
