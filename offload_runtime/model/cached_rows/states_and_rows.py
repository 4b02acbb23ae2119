"""A layer that attends and is recurrent as well, such as those of Falcon-H1 and some of Zamba 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offload_runtime.model.cached_rows.layers import TreeCacheLayer
from offload_runtime.model.linear_attention.states import BranchingLayer

if TYPE_CHECKING:
    from offload_runtime.model.kv_cache import TreeCache


class BranchingTreeLayer(BranchingLayer, TreeCacheLayer):  # type: ignore[override]
    """Keys and values of the texts one after the other, and beside them the recurrent states of each.

    sequences: texts. states: convolutions and recurrent states of the layer.
    """

    def __init__(self, cache: TreeCache, sequences: int, states: int):
        TreeCacheLayer.__init__(self, cache)
        BranchingLayer.__init__(self, sequences, number_of_states=states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of keys and values: states begin empty."""
        TreeCacheLayer.lazy_initialization(self, *args, **kwargs)
