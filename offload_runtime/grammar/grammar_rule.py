"""The shaping rule of a response format: after each node only the tokens that its grammar allows there are left."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offload_runtime.grammar.masks import Bits, Masks
from sequoia_tree.shaping.contexts import Contexts
from sequoia_tree.uploads import upload_together


@dataclass(frozen=True, eq=False)
class GrammarRule:
    """Excludes what the grammar forbids after each context. For one reply, whose prompt has `prompt_length` tokens.

    If the rules before have excluded all that it allows, that is equally likely: text outside the grammar is worse.
    """

    masks: Masks
    prompt_length: int

    def __call__(self, scores: Tensor, contexts: Contexts) -> Tensor:
        reply = contexts.text.array[self.prompt_length :].tolist()
        allowed = _flags(self.masks.after(reply, contexts.paths_on_host()), scores)
        left = scores.masked_fill(~allowed, -torch.inf)
        none_left = left.amax(-1, keepdim=True) == -torch.inf
        return left.masked_fill(none_left & allowed, 0.0)


def _flags(masks: list[Bits], scores: Tensor) -> Tensor:
    """Masks as bool [n, V] on the scores' device, by one upload in which each distinct mask occurs once."""
    distinct = {id(mask): mask for mask in masks}
    numbers = {key: number for number, key in enumerate(distinct)}
    rows = np.array([numbers[id(mask)] for mask in masks])
    table, rows_there = upload_together([np.stack([*distinct.values()]).view(np.int64), rows], scores.device)
    places = torch.arange(8, dtype=torch.uint8, device=scores.device)
    bits = (table.contiguous().view(torch.uint8)[..., None] >> places) & 1
    return bits.flatten(1)[:, : scores.shape[-1]].bool()[rows_there]
