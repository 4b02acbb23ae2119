"""The few shapes that passes are padded to where they are replayed as CUDA graphs: each shape is a graph of its own."""

from __future__ import annotations

from dataclasses import dataclass

# Up to hundreds of rows a resident model takes the time of reading its weights, so padding costs next to nothing. More
# than the last width run as they are: their kernels are long enough to hide how they are launched.
WIDTHS = (1, 8, 32, 64, 128)
# A shorter text attends to this many rows all the same: of an 8B model they are 1 % of the weights read beside them.
SHORTEST_KEYS = 1024


@dataclass(frozen=True)
class Padding:
    """Shapes of passes. All rising; the last key length is the whole cache.

    widths: rows of a pass. key_lengths: rows of the cache that it attends to. columns: most rows of a tree, or of text
    that is read behind the cache, before they are committed.
    """

    widths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    columns: int

    @classmethod
    def of(cls, tree_size: int, cache_rows: int) -> Padding:
        """1, 8, 32, … rows, as far as a tree may need them, over 1,024, 1,536, 2,048, 3,072, … rows or all there are.

        >>> Padding.of(40, 4137)
        Padding(widths=(1, 8, 32, 40), key_lengths=(1024, 1536, 2048, 3072, 4096, 4137), columns=40)
        """
        columns = -(-tree_size // 8) * 8
        widest = 1 if tree_size == 1 else min(columns, WIDTHS[-1])
        steps = (SHORTEST_KEYS << doublings for doublings in range(cache_rows.bit_length()))
        lengths = (length for step in steps for length in (step, step * 3 // 2) if length < cache_rows)
        return cls((*(w for w in WIDTHS if w < widest), widest), (*lengths, cache_rows), max(columns, widest))
