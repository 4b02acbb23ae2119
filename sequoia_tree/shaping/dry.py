"""DRY: a penalty on tokens that would repeat a sequence, growing with its length.

By p-e-w, as in text-generation-webui (pull request 5677): after a context whose end occurred before, over m tokens,
the token that followed then loses multiplier * base^(m - allowed_length), if m is at least allowed_length and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_tree.shaping.contexts import Contexts, spare_column

_LONGEST = 50  # repeated tokens that are counted, as there
_LARGEST = 1e30


@dataclass(frozen=True, eq=False)
class DryPenalty:
    """breakers: bool [V + 1], tokens at which repeated sequences end; the last entry stands for no token.

    last_n: only the last `last_n` tokens of the context count; 0: all of them.
    """

    multiplier: float
    base: float
    allowed_length: int
    last_n: int
    breakers: Tensor

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        vocab_size = scores.shape[-1]
        tokens = spare_column(contexts.since(contexts.range[0] - self.last_n if self.last_n else 0), vocab_size)
        ends = contexts.depths + (tokens.shape[1] - contexts.paths.shape[1])  # of each context, in `tokens`
        repeated = self._repeated(tokens, ends)
        longest = tokens.new_zeros(len(scores), vocab_size + 1)
        longest.scatter_reduce_(1, tokens[:, 1:], repeated, "amax")
        longest = longest[:, :vocab_size]
        penalty = torch.pow(self.base, (longest - self.allowed_length).double()) * self.multiplier
        return scores - penalty.clamp(max=_LARGEST).float().masked_fill(longest < max(self.allowed_length, 1), 0)

    def _repeated(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """For each token but the last, how many tokens up to it match the end of the context: int64 [n, T - 1]."""
        length = tokens.shape[1]
        places = torch.arange(length - 1, device=tokens.device)
        window_begin = (ends - self.last_n).clamp(min=0) if self.last_n else torch.zeros_like(ends)
        # What followed must be in the context, and be no breaker itself.
        alive = (places + 1 < ends[:, None]) & ~self.breakers[tokens[:, 1:]]
        count = torch.zeros_like(alive, dtype=torch.int64)
        for back in range(min(_LONGEST, length - 1)):
            place = ends - 1 - back
            token = tokens.gather(1, place.clamp(min=0)[:, None])
            usable = (place >= window_begin)[:, None] & ~self.breakers[token]
            earlier = torch.nn.functional.pad(tokens[:, : length - 1 - back], (back, 0), value=-1)
            alive = alive & usable & (earlier == token) & (places - back >= window_begin[:, None])
            count += alive
        return count
