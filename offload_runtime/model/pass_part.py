"""What one text puts into a pass, and passes that run the parts of several texts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from offload_runtime.model.model import Model
from offload_runtime.model.rows import PassRows, SharedRows, text_rows
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class PassPart:
    """``tokens [n]`` with their rows; logits are wanted after the last `wanted` of them."""

    tokens: Tensor
    rows: PassRows
    wanted: int


def text_part(model: Model, tokens: Sequence[int], sequence: int, wanted: int) -> PassPart:
    """Tokens that continue the text in a sequence of the model's cache."""
    cached = model.cache.sequences[sequence]
    rows = text_rows(cached.length, len(tokens), model.device, cached.first_row)
    return PassPart(upload(tokens, model.device), rows, wanted)


def run_parts(model: Model, parts: Sequence[PassPart], most_rows: int) -> list[Tensor]:
    """Logits ``[wanted, vocab]`` of each part, which may be a view.

    Parts of several texts share a pass as long as it has at most `most_rows` rows.
    """
    return [logits for together in passes(parts, most_rows) for logits in run_together(model, together)]


def passes(parts: Sequence[PassPart], most_rows: int) -> Iterator[Sequence[PassPart]]:
    """The parts of one pass at a time: as many as have at most `most_rows` rows together."""
    together: list[PassPart] = []
    for part in parts:
        if together and sum(other.rows.count for other in together) + part.rows.count > most_rows:
            yield together
            together = []
        together.append(part)
    yield together


def run_together(model: Model, parts: Sequence[PassPart]) -> Sequence[Tensor]:
    """Logits ``[wanted, vocab]`` of each part, of one pass."""
    if len(parts) == 1:
        wanted = parts[0].wanted
        return [model.forward(parts[0].tokens, parts[0].rows, max(1, wanted))[:wanted]]
    rows = SharedRows(tuple(part.rows for part in parts))
    ends = accumulate(part.rows.count for part in parts)
    rows_wanted = np.concatenate([np.arange(end - part.wanted, end) for end, part in zip(ends, parts)])
    tokens = torch.cat([part.tokens for part in parts])
    kept = rows_wanted if len(rows_wanted) else np.zeros(1, dtype=np.int64)  # where texts are only read
    logits = model.forward(tokens, rows, upload(kept, model.device))
    return logits[: len(rows_wanted)].split([part.wanted for part in parts])
