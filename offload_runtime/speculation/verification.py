"""From the target's logits to the accepted path, under the request's sampling settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.shaping.contexts import Contexts, Text
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.uploads import upload_together
from sequoia_tree.verification.distributions import Distributions
from sequoia_tree.verification.sampling import (
    bounded_log_distribution,
    first_width,
    into_probabilities,
    log_probs,
    processed,
    wider,
)
from sequoia_tree.verification.verify import RULES, AcceptedPath, follow, verify_greedy


@dataclass(frozen=True)
class Scored:
    """A draft tree with the target's ``logits [n, vocab]`` at its nodes, after one text and under one sampling.

    tokens: of the nodes, int64 [n].
    """

    drawn: DraftTree
    logits: Tensor
    sampling: Sampling
    tokens: Tensor
    contexts: Contexts | None
    _distribution_rows: Tensor

    @classmethod
    def of(cls, drawn: DraftTree, logits: Tensor, text: Sequence[int], sampling: Sampling) -> "Scored":
        tokens, distribution_rows = upload_together([np.array(drawn.tokens), drawn.distribution_rows], logits.device)
        contexts = drawn.contexts(Text.of(text, logits.device), tokens) if sampling.rules else None
        return cls(drawn, logits, sampling, tokens, contexts, distribution_rows)

    @property
    def distributions(self) -> Distributions:
        vocabulary = self.logits.shape[-1]
        return Distributions(self._target_distribution, self.draft_distribution, vocabulary, self._draft_row)

    def distributions_of_likeliest(self, width: int, enough: list[Tensor]) -> Distributions:
        """The same, but top-k and top-p see `width` tokens only; appends to `enough` whether these suffice."""

        def target(nodes: Tensor) -> Tensor:
            distribution, is_enough = bounded_log_distribution(
                self.logits[nodes], self.sampling, width, self._contexts(nodes)
            )
            enough.append(is_enough)
            return into_probabilities(distribution)

        return replace(self.distributions, target=target)

    def draft_distribution(self, nodes: Tensor) -> Tensor:
        """``[m, vocab]``, the rows of `DraftTree.distributions` for nodes, int64 [m]."""
        assert self.drawn.distributions is not None
        return self.drawn.distributions[self._distribution_rows[nodes]]

    def _draft_row(self, node: int) -> Tensor:
        assert self.drawn.distributions is not None
        return self.drawn.distributions[self.drawn.distribution_rows[node]]

    def processed(self, nodes: Tensor) -> Tensor:
        """The target's processed logits ``[m, vocab]`` after the given nodes, int64 [m], before temperature."""
        return processed(self.logits[nodes], self.sampling, self._contexts(nodes))

    def _target_distribution(self, nodes: Tensor) -> Tensor:
        return into_probabilities(log_probs(self.logits[nodes], self.sampling, self._contexts(nodes)))

    def _contexts(self, nodes: Tensor) -> Contexts | None:
        return None if self.contexts is None else self.contexts[nodes]


@torch.inference_mode()
def verify(scored: Scored, rule: str, generator: torch.Generator) -> AcceptedPath:
    """The accepted path and the bonus token. `rule`, a key of `RULES`, tests drawn nodes; other nodes are matched.

    The bonus token is -1 if the target's logits are NaN or infinite.
    """
    if scored.sampling.temperature == 0:
        nodes = torch.arange(scored.drawn.tree.size, device=scored.logits.device)
        pieces = nodes.split(scored.distributions.most_rows(nodes.device))
        best = torch.cat([_likeliest(scored.processed(piece)) for piece in pieces])
        return verify_greedy(scored.drawn.tree, torch.as_tensor(scored.drawn.tokens), best)  # compared on the host
    width = first_width(scored.logits, scored.sampling)
    while width:
        state, enough = generator.get_state(), list[Tensor]()
        accepted_path = _sampled(scored, scored.distributions_of_likeliest(width, enough), rule, generator)
        if torch.stack(enough).all():
            return accepted_path
        generator.set_state(state)  # the result must depend on the distributions alone, not on the attempt
        width = wider(width, scored.logits)
    return _sampled(scored, scored.distributions, rule, generator)


def _sampled(scored: Scored, distributions: Distributions, rule: str, generator: torch.Generator) -> AcceptedPath:
    drawn, tokens = scored.drawn, scored.tokens
    tree = drawn.drawn_part
    accepted_path = RULES[rule](tree, tokens[: tree.size], distributions, generator)
    if tree.size < drawn.tree.size:
        accepted_path = follow(
            drawn.tree, tokens, accepted_path, range(tree.size, drawn.tree.size), distributions, generator
        )
    return accepted_path


def _likeliest(scores: Tensor) -> Tensor:
    """The argmax of each row, int64 [m]; -1 where the largest score is not finite."""
    largest, tokens = scores.max(dim=-1)
    return tokens.masked_fill(~largest.isfinite(), -1)
