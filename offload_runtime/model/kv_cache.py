"""Key/value cache that holds texts, each followed by the rows of a tree that is not verified yet.

transformers' own caches drop rows in sliding-window layers and cannot be compacted to an accepted path. So every layer
here is preallocated at full length, and the attention mask alone implements the window.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from itertools import accumulate
from itertools import count as count_up
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from loaders.checkpoint.refused import WHAT_RUNS
from loaders.checkpoint.spec import SHARED_ROWS
from loaders.text_part import layers_for_images
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.model.attention import rows_before
from offload_runtime.model.cached_rows.forms import RowForm, RowsIn8Bits
from offload_runtime.model.cached_rows.layers import TravellingLayer, TreeCacheLayer
from offload_runtime.model.cached_rows.states_and_rows import BranchingTreeLayer
from offload_runtime.model.cached_rows.travelling_rows import TravellingRows
from offload_runtime.model.cached_sequence import CachedSequence
from offload_runtime.model.linear_attention.states import BranchingLayer, SequenceStates, linear_pass
from offload_runtime.model.rows import PassRows, SharedRows
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class Places:
    """The cache rows that a pass of fixed shape writes, int64 [w], and how many it attends to.

    read: which ones, int64 [keys]; None: the leading ones.
    """

    rows: Tensor
    keys: int
    read: Tensor | None = None


# Stands for layers that cache nothing: without attention, or sharing another layer's keys. Not in transformers 5.17.
_NO_CACHE: tuple[type, ...] = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()
# Also cache the keys of an indexer. Not in transformers 5.17.
_INDEXED: tuple[type, ...] = (cache_utils.DynamicIndexedLayer,) if hasattr(cache_utils, "DynamicIndexedLayer") else ()
# Layers of single models that keep nothing but what `TreeCacheLayer` keeps of each row.
_KEPT_BY_ROWS = {"compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse"}


class TreeCache(Cache):
    """`sequences` texts of at most `capacity` rows each; the last row of each is scratch, for padding only.

    Recurrent layers (state space, linear attention) branch if `branching`. Others keep transformers' own cache layer,
    so such a cache holds one text, however many are asked for.

    travelling: makes room for so many layers of so many rows in host memory; None: rows stay on the device.
    in_8_bits: rows are stored in 8 bits; recurrent states never are. Raises UnsupportedModelError where that cannot be.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        capacity: int,
        on_allocate: Callable[[int], None] = lambda nbytes: None,
        sequences: int = 1,
        travelling: Callable[[int, int], TravellingRows] | None = None,
        branching: bool = False,
        in_8_bits: bool = False,
    ):
        self.capacity = capacity
        self.scratch = capacity - 1
        self.places: Places | None = None
        self.on_allocate = on_allocate
        self._model_type = config.model_type
        self._unused = layers_for_images(config.to_dict())  # they cache nothing
        theirs = DynamicCache(config=config).layers
        layers = [self._layer(*one, sequences if branching else 0) for one in enumerate(theirs)]
        if in_8_bits:
            self._check_8_bits(config, layers)
        branches = [layer for layer in layers if isinstance(layer, BranchingLayer)]
        states = [layer for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
        self._states = [layer for layer in states if layer not in branches]
        self.has_states, self.has_rows = bool(states), any(_has_rows(layer) for layer in layers)
        count = 1 if self._states else sequences
        self.rows = capacity * count
        self.form = RowsIn8Bits(self.rows, on_allocate) if in_8_bits else RowForm()
        of_texts = [SequenceStates(branches, number) if branches else None for number in range(count)]
        self.sequences = tuple(
            CachedSequence(self, number * capacity, self.scratch, of_text) for number, of_text in enumerate(of_texts)
        )
        self.current = self.sequences[0]
        self._written: Tensor | None = None  # the rows that the current pass writes, where texts share it
        self._shared: SharedRows | None = None
        self._has_run = False
        self.travelling: TravellingRows | None = None
        if travelling is not None:
            numbers = count_up()
            layers = [TravellingLayer(self, next(numbers)) if _has_rows(layer) else layer for layer in layers]
            self.travelling = travelling(next(numbers), self.rows)
        Cache.__init__(self, layers=layers)  # a class of one model lies between

    def _layer(self, number: int, layer: Any, branching: int) -> Any:
        """The layer to use instead of transformers' `layer`. branching: the texts that a recurrent one may hold."""
        if branching and isinstance(layer, LinearAttentionLayer):
            if isinstance(layer, DynamicLayer):
                return BranchingTreeLayer(self, branching, layer.number_of_states)
            return BranchingLayer(branching, number_of_states=layer.number_of_states)
        if number in self._unused or isinstance(layer, (LinearAttentionCacheLayerMixin, _NO_CACHE)):
            return layer
        kind = getattr(layer, "_layer_type", None)
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, *_INDEXED) or kind in _KEPT_BY_ROWS:
            return TreeCacheLayer(self)
        raise UnsupportedModelError(
            f"{self._model_type}: its attention keeps a {type(layer).__name__}, which cannot hold a tree. {WHAT_RUNS}."
        )

    def _check_8_bits(self, config: PretrainedConfig, layers: Sequence[Any]) -> None:
        """Raises UnsupportedModelError unless all rows of the model lie in this cache's own layers, for one layer each.

        Rows that other layers read later would be overwritten by those of layers between, once dequantized.
        """
        reason = None
        if shares_rows(config):
            reason = SHARED_ROWS
        elif any(
            isinstance(layer, LinearAttentionCacheLayerMixin) and isinstance(layer, DynamicLayer) for layer in layers
        ):
            reason = "its layers keep them beside a recurrent state"
        elif not any(map(_has_rows, layers)):
            reason = "it caches none"
        if reason:
            raise UnsupportedModelError(
                f"{self._model_type}: its keys and values cannot be kept in 8 bits: {reason}. Leave out --kv-bits."
            )

    @property
    def is_recurrent(self) -> bool:
        """Whether some layer is recurrent and does not branch; such a cache cannot hold a tree."""
        return bool(self._states)

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        """Cached rows before those of the pass: an int, or int64 [n] if asked for one layer during a pass.

        Llama 4's attention adds the row index to it to get positions; in a tree these do not follow the rows' order.
        """
        if layer_idx in self._unused:
            return 0
        counted = None if layer_idx is None else rows_before()
        return super().get_seq_length(layer_idx or 0) if counted is None else counted

    def rollback(self) -> None:
        """`CachedSequence.rollback` of all texts."""
        for sequence in self.sequences:
            sequence.rollback()

    def truncate(self, length: int) -> None:
        """`CachedSequence.truncate` of all texts."""
        for sequence in self.sequences:
            sequence.truncate(length)

    def keys(self, query_length: int) -> int:
        """Keys of the current pass over `query_length` tokens: the width of its mask."""
        if self._shared is not None:
            return self._shared.width
        return self.current.end + query_length if self.places is None else self.places.keys

    def written_rows(self, count: int) -> slice | Tensor:
        """The rows of the cache that the current pass over `count` tokens writes; int64 [count] if they are apart."""
        if self.places is not None:
            return self.places.rows
        if self._written is not None:
            return self._written
        text = self.current
        assert text.end + count <= text.most_rows
        return slice(text.first_row + text.end, text.first_row + text.end + count)

    def read_rows(self, count: int) -> tuple[slice | Tensor, Sequence[slice]]:
        """The rows of the cache that attention is given in the current pass over `count` tokens, int64 [k] if they are
        apart, and those among them that it needs."""
        if self.places is not None and self.places.read is not None:
            return self.places.read, (slice(self.places.keys),)
        if self._shared is not None:
            return slice(self._shared.width), [keys for _, keys in self._shared.spans]
        first = self.current.first_row if self.places is None else 0
        rows = slice(first, first + self.keys(count))
        return rows, (rows,)

    @contextmanager
    def writing_at(self, places: Places) -> Iterator[None]:
        """Within the block, passes write and read the rows given by `places`, not those at the end."""
        self.places = places
        try:
            yield
        finally:
            self.places = None

    @contextmanager
    def one_pass(self, rows: PassRows | SharedRows) -> Iterator[None]:
        """Surrounds a pass over these rows. Within, layers append to its texts; their ends move once it has succeeded.

        If it fails, recurrent states may have absorbed part of it, so they are reset.
        """
        texts = rows.texts if isinstance(rows, SharedRows) else (rows,)
        sequences = [self.sequences[text.first_row // self.capacity] for text in texts]
        self.current = sequences[0]
        if isinstance(rows, SharedRows):
            self._shared, self._written = rows, self._places_of(rows, sequences)
        try:
            with self._travel(texts, sequences), self._branching(texts, sequences):
                yield
        except BaseException:
            for sequence in sequences:
                sequence.rollback()
            if self._states:
                self.current.restart()
            raise
        finally:
            self.current, self._shared, self._written = self.sequences[0], None, None
        self.advance_texts(rows)

    def advance_texts(self, rows: PassRows | SharedRows) -> None:
        """A pass over these rows has succeeded."""
        for text in rows.texts if isinstance(rows, SharedRows) else (rows,):
            self.sequences[text.first_row // self.capacity].advance(text.count)
        self._has_run = True

    def _travel(self, texts: Sequence[PassRows], sequences: Sequence[CachedSequence]) -> AbstractContextManager[None]:
        """Rows in host memory travel for a pass over these texts."""
        if self.travelling is None:
            return nullcontext()
        ends = [sequence.first_row + sequence.end for sequence in sequences]
        return self.travelling.one_pass(
            [(sequence.first_row, end) for sequence, end in zip(sequences, ends)],
            [(end, end + text.count) for text, end in zip(texts, ends)],
        )

    def _branching(
        self, texts: Sequence[PassRows], sequences: Sequence[CachedSequence]
    ) -> AbstractContextManager[None]:
        """Within the block, recurrent layers that branch follow the paths of these rows."""
        begins = accumulate((text.count for text in texts), initial=0)
        own = [
            (slice(begin, begin + text.count), self.sequences.index(sequence), sequence.states.branches(text))
            for begin, text, sequence in zip(begins, texts, sequences)
            if sequence.states is not None
        ]
        return linear_pass(own) if own else nullcontext()

    def _places_of(self, rows: SharedRows, sequences: Sequence[CachedSequence]) -> Tensor:
        """int64 [n], the cache row of each query token."""
        for text, sequence in zip(rows.texts, sequences):
            assert sequence.end + text.count <= sequence.most_rows
        begins = [sequence.first_row + sequence.end for sequence in sequences]
        places = [np.arange(begin, begin + text.count) for begin, text in zip(begins, rows.texts)]
        return upload(np.concatenate(places), rows.row_positions.device)

    def tables(self) -> dict[str, Tensor]:
        """All that every layer's rows consist of, as it is stored, ``[heads, rows, any]`` by name, to read and write.

        None before the first pass that succeeds: only then is it known which layers have any.
        """
        named: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers if self._has_run else ()):
            if isinstance(layer, TreeCacheLayer):
                named |= {f"{name}.{number}": table[0] for name, table in layer.at_rest().items()}
        return named

    @torch.inference_mode()
    def blank(self, row: int) -> None:
        """Make one row 0 in every layer, wherever it lies."""
        for layer in self._tree_layers():
            for table in (*layer.at_rest().values(), *layer.tables.values()):
                table[:, :, row] = 0

    def free(self) -> None:
        """Free all rows; the cache cannot be used afterwards."""
        if self.travelling is not None:
            self.travelling.close()
        self.form.free()
        self.layers.clear()
        self._states.clear()

    @torch.inference_mode()
    def restart(self) -> None:
        """Reset the recurrent states."""
        for layer in self._states:
            layer.reset()

    @torch.inference_mode()
    def move(self, source: Sequence[int], begin: int) -> None:
        """Copy the rows `source` to the rows that start at `begin`, in every layer."""
        rows = cache(partial(upload, source))
        for layer in self._tree_layers():
            layer.move(rows, begin)

    @torch.inference_mode()
    def copy(self, source: int, begin: int, count: int) -> None:
        """Copy the `count` rows from `source` on to the rows that start at `begin`, in every layer."""
        for layer in self._tree_layers():
            layer.copy(source, begin, count)

    def _tree_layers(self) -> list[TreeCacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, TreeCacheLayer)]


def _has_rows(layer: Any) -> bool:
    return isinstance(layer, TreeCacheLayer)


def shares_rows(config: PretrainedConfig) -> bool:
    """Whether some layers read what others have cached, so that it has to stay on the device for a whole pass."""
    text = config.get_text_config(decoder=True)
    return any(getattr(text, "kv_sharing_modes", None) or ()) or bool(getattr(text, "num_kv_shared_layers", 0))


def cache_argument(model: nn.Module, cache: TreeCache) -> str:
    """The name of the model's cache argument; pure state-space models use another one.

    Raises UnsupportedModelError for a model that accepts no cache or no position ids. Without position ids it counts
    the rows in its cache (as for ALiBi), and the rows of a tree are not in the order of the text.
    """
    parameters = signature(model.forward).parameters
    if cache.has_states and not cache.has_rows and "cache_params" in parameters:
        return "cache_params"
    if not {"past_key_values", "position_ids"} <= parameters.keys():
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no positions or no cache from outside, so it cannot run over a tree of "
            f"drafts. {WHAT_RUNS}."
        )
    return "past_key_values"
