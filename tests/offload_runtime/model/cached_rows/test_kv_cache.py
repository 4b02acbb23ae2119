"""The cache keeps exactly the rows that were accepted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from offload_runtime.model.kv_cache import TreeCache

TWO_LAYERS = LlamaConfig(num_hidden_layers=2)


def fill(cache: TreeCache, values: list[int]) -> torch.Tensor:
    """Write one row per value in both layers, as a model would, and return the keys that layer 1 handed back."""
    rows = torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)
    for layer in range(2):
        keys, _ = cache.update(rows, rows + 0.5, layer)
    cache.sequences[0].advance(len(values))
    return keys.flatten()


def committed(cache: TreeCache, layer: int = 0) -> tuple[list[float], list[float]]:
    held, length = cache.layers[layer].tables, cache.sequences[0].length
    return held["keys"][0, 0, :length, 0].tolist(), held["values"][0, 0, :length, 0].tolist()


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2**6 - 1)), min_size=1, max_size=6),
)
def test_commit_keeps_the_named_rows_in_order(passes):
    cache = TreeCache(TWO_LAYERS, capacity=64)
    expected: list[float] = []
    number = 0
    for count, chosen in passes:
        values = list(range(number, number + count))
        number += count
        seen = fill(cache, values)
        assert seen.tolist() == expected + values
        rows = [row for row in range(count) if chosen >> row & 1]
        cache.sequences[0].commit(rows)
        expected += [values[row] for row in rows]
        assert (cache.sequences[0].length, cache.sequences[0].end) == (len(expected), len(expected))
        for layer in range(2):
            assert committed(cache, layer) == (expected, [value + 0.5 for value in expected])


def test_rollback_and_truncate_leave_committed_rows():
    cache = TreeCache(TWO_LAYERS, capacity=8)
    fill(cache, [1, 2, 3])
    cache.sequences[0].commit([0, 1, 2])
    fill(cache, [7, 8])
    cache.rollback()
    assert committed(cache)[0] == [1, 2, 3] and cache.sequences[0].end == 3
    cache.truncate(5)
    assert cache.sequences[0].length == 3
    cache.truncate(1)
    assert fill(cache, [9]).tolist() == [1, 9]


def test_rows_of_several_passes_can_be_committed_together():
    cache = TreeCache(TWO_LAYERS, capacity=8)
    fill(cache, [1])
    cache.sequences[0].commit([0])
    fill(cache, [2, 3])
    fill(cache, [4, 5])
    cache.sequences[0].commit([1, 2])
    assert committed(cache)[0] == [1, 3, 4]


def test_allocation_is_reported_once():
    sizes: list[int] = []
    cache = TreeCache(TWO_LAYERS, capacity=8, on_allocate=sizes.append)
    fill(cache, [1])
    fill(cache, [2])
    assert sizes == [8 * 4] * 4


def test_more_rows_than_capacity_is_a_bug():
    cache = TreeCache(TWO_LAYERS, capacity=2)
    with pytest.raises(AssertionError):
        cache.update(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), 0)
