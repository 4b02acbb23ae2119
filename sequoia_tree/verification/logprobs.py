"""Log-probabilities of the tokens that a pass yields, by the target's own distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sequoia_tree.uploads import upload_together
from sequoia_tree.verification.verify import AcceptedPath

MOST_TOP = 20  # as in OpenAI's interface


@dataclass(frozen=True)
class TokenLogprobs:
    """The natural logarithm of a token's probability before any sampling setting: the log-softmax of the logits.

    top: the likeliest tokens at its place and theirs, likeliest first. -inf for a token that the model rules out.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def token_logprobs(
    logits: Tensor, accepted_path: AcceptedPath, tokens: list[int], top: int
) -> tuple[TokenLogprobs, ...]:
    """One entry for each of `tokens`: those at the nodes of the path, then the bonus token, or the first few of them.

    logits: [n, V], of the token after each node of the tree. Waits for the device once.
    """
    if not tokens:
        return ()
    places = [0, *accepted_path.path][: len(tokens)]
    nodes, ids = upload_together([np.array(places), np.array(tokens)], logits.device)
    log_probs = logits[nodes].float().log_softmax(-1)
    highest, likeliest = log_probs.topk(min(top, logits.shape[-1]))
    own = log_probs.gather(1, ids[:, None])
    # float64 holds every token id and every float32
    table = torch.cat((own.double(), highest.double(), likeliest.double()), dim=1).tolist()
    return tuple(
        TokenLogprobs(token, row[0], tuple(zip(map(int, row[1 + (len(row) - 1) // 2 :]), row[1:])))
        for token, row in zip(tokens, table)
    )
