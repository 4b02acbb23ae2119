"""Allocates a model's cache before its first pass over a text."""

import torch

from offload_runtime.model.model import Model, never
from offload_runtime.model.rows import text_rows
from sequoia_tree.uploads import upload


@torch.inference_mode()
def allocate_cache(model: Model) -> None:
    """Allocate all rows of the cache: their shapes are only known from a pass, here one that streams nothing.

    Does nothing once a pass has succeeded.
    """
    if model.cache.tables():
        return
    cached, model.should_stop = model.cache.sequences[0], never
    with model.unpadded(), model.without_streaming():
        model.forward(upload([0], model.device), text_rows(0, 1, model.device, cached.first_row), 1)
    cached.rollback()
    model.cache.blank(cached.first_row)  # what was computed without the right weights may be NaN
