"""The best tree for any acceptance vector: the dynamic program of Sequoia (arXiv 2402.12374, section 3).

T[d][b][n] is the most tokens expected from a subtree of at most n nodes and depth d whose root has exactly b children,
counted from that root on; Best[d][n] is its maximum over b.

    T[d][0][n] = 1
    T[d][b][n] = max over m of  T[d][b - 1][n - m] + acceptance[b - 1] * Best[d - 1][m]

Exactly b, because child b is never there without child b - 1, however unlikely that one is. No node at all (n = 0), or
too few for b children, counts -inf.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sequoia_tree.tree import Tree

Floats = NDArray[np.float64]


def dynamic_program(acceptance: Floats, size: int, max_depth: int) -> Tree:
    """The best tree of at most `size` nodes, none deeper than `max_depth`; parents come before their children.

    O(size² · depth · children) time and O(size · depth · children) memory, up to the depth where nothing improves.
    """
    tables = _tables(acceptance, size, max_depth)
    parents: list[int] = []
    todo = [(-1, len(tables) - 1, size)]  # parent, depth left, nodes for the whole subtree; the next one is the last
    while todo:
        parent, depth, budget = todo.pop()
        if depth:
            shares = _shares(tables[depth], tables[depth - 1].max(axis=0), acceptance, budget)
            todo.extend((len(parents), depth - 1, share) for share in shares)
        parents.append(parent)
    return Tree(parents)


def _tables(acceptance: Floats, size: int, max_depth: int) -> list[Floats]:
    """T[d] as float64 [b + 1, size + 1], for each depth d until a further level changes nothing."""
    leaf = np.ones(size + 1)
    leaf[0] = -np.inf
    tables = [leaf[None]]
    best = leaf
    for _ in range(max_depth):
        rows = [leaf]
        for chance in acceptance:
            rows.append(_with_child(rows[-1], chance * best[1:]))
        tables.append(np.stack(rows))
        shallower, best = best, tables[-1].max(axis=0)
        if np.array_equal(best, shallower):
            break
    return tables


def _with_child(earlier: Floats, child: Floats) -> Floats:
    """max over m of earlier[n - m] + child[m - 1] for each n; earlier [size + 1], child [size]."""
    total = np.full_like(earlier, -np.inf)
    for m in range(1, len(child)):
        np.maximum(total[m + 1 :], earlier[1:-m] + child[m - 1], out=total[m + 1 :])
    return total


def _shares(table: Floats, best: Floats, acceptance: Floats, budget: int) -> list[int]:
    """Nodes that each child's subtree gets out of `budget`, the last child first."""
    shares = []
    for b in range(int(table[:, budget].argmax()), 0, -1):
        totals = table[b - 1, budget - 1 : 0 : -1] + acceptance[b - 1] * best[1:budget]
        shares.append(int(totals.argmax()) + 1)
        budget -= shares[-1]
    return shares
