"""The few shapes to which passes are padded when they are replayed as CUDA graphs: one graph per shape."""

from __future__ import annotations

from dataclasses import dataclass

# Up to hundreds of rows, a pass of a resident model takes as long as reading its weights, so padding costs almost
# nothing. Passes above the last width run unpadded: their kernels are long enough to hide the launches.
WIDTHS = (1, 8, 32, 64, 128)
# Shorter texts also attend to this many key positions: for an 8B model, 1 % of the bytes of its weights.
SHORTEST_KEYS = 1024
# Where texts share a pass, every row is compared with the keys of all of them. Beyond those of so many whole texts,
# that would take longer than launching each kernel for itself.
MOST_WHOLE_TEXTS = 4


@dataclass(frozen=True)
class Padding:
    """Shapes of passes, in increasing order; the last key length is the whole cache.

    widths: query tokens of a pass. key_lengths: cache positions that it attends to. columns: the most tokens of a tree,
    or of text behind the cache, before they are committed.
    """

    widths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    columns: int

    @classmethod
    def of_texts(cls, texts: int, tree_size: int, nodes: int, cache_rows: int) -> Padding:
        """For a cache of `texts` texts with a tree of `tree_size` each, and passes over `nodes` of all of them.

        >>> Padding.of_texts(3, 8, 20, 400)
        Padding(widths=(1, 8, 24), key_lengths=(1024, 1200), columns=24)
        """
        if texts == 1:
            return cls.of(tree_size, cache_rows)
        return cls.of(max(nodes, texts), min(texts, MOST_WHOLE_TEXTS) * cache_rows)

    @classmethod
    def of(cls, tree_size: int, cache_rows: int) -> Padding:
        """1, 8, 32, … query tokens up to the tree's size, over 1,024, 1,536, 2,048, … positions or the whole cache.

        >>> Padding.of(40, 4137)
        Padding(widths=(1, 8, 32, 40), key_lengths=(1024, 1536, 2048, 3072, 4096, 4137), columns=40)
        """
        columns = -(-tree_size // 8) * 8
        widest = 1 if tree_size == 1 else min(columns, WIDTHS[-1])
        steps = (SHORTEST_KEYS << doublings for doublings in range(cache_rows.bit_length()))
        lengths = (length for step in steps for length in (step, step * 3 // 2) if length < cache_rows)
        return cls((*(w for w in WIDTHS if w < widest), widest), (*lengths, cache_rows), max(columns, widest))
