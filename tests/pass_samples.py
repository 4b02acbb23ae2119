"""Passes over all kinds of rows, and how far their logits are from those of other passes over the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from offload_runtime import OffloadRuntime
from offload_runtime.model.model import Model
from offload_runtime.model.rows import PassRows, text_and_tree_rows, text_rows
from offload_runtime.speculation.draft_tree import DraftTree
from scheduler.plan.padding import Padding
from sequoia_tree import Tree
from tests.samples.tiny_models import PROMPT

TREE = Tree([-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 7, 10])  # its deepest path leaves every sliding window
CONTEXT = 120
PADDING = Padding(widths=(1, 8, 16), key_lengths=(48, 72, CONTEXT + 12 + 1), columns=16)
LENGTHS = (1, 30, 61, 96)  # of texts before a pass: in the first key length, and in each behind it
OPTIONS = {"tree": "sequoia", "tree_size": 12, "tree_depth": 4, "context_length": CONTEXT}


@contextmanager
def loaded(directory: Path, device: str = "cpu", **options: Any) -> Iterator[Model]:
    """A model with room for `CONTEXT` tokens and a tree."""
    with OffloadRuntime.from_pretrained(directory, directory, device=device, **OPTIONS, **options) as runtime:
        yield runtime._models.target.model


def text_of(length: int) -> list[int]:
    return torch.randint(96, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def tree_rows(past: int, unread: int, device: torch.device) -> PassRows:
    ancestors, depths = torch.from_numpy(TREE.ancestor_mask()), torch.from_numpy(TREE.depth_array)
    return text_and_tree_rows(past, unread, ancestors.to(device), depths.to(device))


def passes(model: Model) -> list[Tensor]:
    """Logits of passes over all kinds of rows behind texts of several lengths, each text read and then cut back to."""
    results: list[Tensor] = []
    for length in (*LENGTHS, *LENGTHS[::-1]):
        model.cache.truncate(0)
        model.read(text_of(length), most_rows=50)
        results += _passes_behind(model, length)
    return results


def _passes_behind(model: Model, length: int) -> Iterator[Tensor]:
    device = model.device
    for rows in (text_rows(length, 1, device), tree_rows(length, 1, device), tree_rows(length, 3, device)):
        tokens = torch.tensor(text_of(len(rows.positions) + 200)[: len(rows.positions)], device=device)
        yield model.forward(tokens, rows, len(tokens)).clone()
        model.cache.rollback()
    rows = tree_rows(length, 1, device)  # the tree in two passes, of which the second sees the first
    upper = PassRows(length, rows.positions[:4], rows.visible[:4, :4])
    yield model.forward(torch.arange(4, device=device), upper, 4).clone()
    yield model.forward(torch.arange(8, device=device), PassRows(length, rows.positions, rows.visible[4:]), 8).clone()
    model.cache.sequences[0].commit([0, 1, 4])
    yield model.read([7, 8], most_rows=50).clone()


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Over all passes, relative to their logits; not a number where a logit is none."""
    pairs = zip(ours, theirs, strict=True)
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp(min=1) for a, b in pairs]).max())


def wide_tree_error(runtime: OffloadRuntime, reference: PreTrainedModel) -> float:
    """How far logits of a wide tree are from those of each of its paths run alone, relative to the largest.

    Its rows stand far behind their positions in the cache, so whatever counts rows comes out at another border.
    """
    text, tree = [*PROMPT, *range(40, 58)], Tree([-1, *[0] * 8, 1, 1, 2, 5, 9, 12])
    tokens, none = [text[-1], *range(2, 2 + tree.size - 1)], np.full(tree.size, -1)
    runtime._models.target.model.take_up(CONTEXT, 0)  # all of the tree counts as prompt, as for the reference
    ours = runtime._models.target.score(text, DraftTree(tree, tokens, tree.size, none, None, none))
    paths = [[tokens[node] for node in np.flatnonzero(seen)[1:]] for seen in tree.ancestor_mask()]
    padded = torch.tensor([[*text, *path, *[0] * (tree.depth - len(path))] for path in paths])
    with torch.inference_mode():
        logits = reference(padded, use_cache=False).logits
    theirs = torch.stack([row[len(text) - 1 + len(path)] for row, path in zip(logits, paths)])
    return float((ours - theirs).abs().max() / theirs.abs().max())
