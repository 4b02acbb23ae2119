"""Pictures of trees: lines of text for a terminal, and SVG files."""

from __future__ import annotations

import textwrap
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sequoia_tree.shapes.construct import expected_reach
from sequoia_tree.tree import Tree

Floats = NDArray[np.float64]

_MARGIN, _HEADING = 20, 36  # SVG lengths are in pixels
_NARROWEST, _WIDEST, _TALLEST = 400, 1600, 960  # the heading needs 400
_LEAF_PITCH, _LEVEL_PITCH = 28, 56  # at most; large trees are squeezed until they fit
_RADII = 1.2, 9.0  # of a node that is never accepted, and of the root
_COLOURS = (205, 216, 228), (8, 61, 119)  # the same, as red, green and blue


def summary(tree: Tree, acceptance: ArrayLike, columns: int = 80) -> str:
    """Size, depth, expected tokens per pass and the nodes at each depth, in lines of at most `columns` characters.

    ValueError for a bad `acceptance`, as for `expected_tokens`.
    """
    runs = [(count, len(list(run))) for count, run in groupby(np.bincount(tree.depth_array).tolist())]
    counts = ", ".join(f"{count}" if times == 1 else f"{count} ({times} times)" for count, times in runs)
    return f"{_headline(tree, acceptance)}\n{textwrap.fill(f'nodes at each depth: {counts}', max(40, columns))}"


def text(tree: Tree, acceptance: ArrayLike, lines: int | None = None, columns: int | None = None) -> str:
    """The tree from left to right, one line per leaf, each node as its child number and its expected reach in percent.

    Where `lines` (at least 1) or `columns` is too few, the likeliest nodes are drawn; a node that has lost all its
    children ends in …, and a last line, which is not counted, says how many nodes are hidden. ValueError for a bad
    `acceptance`, as for `expected_tokens`.
    """
    reach = expected_reach(tree, acceptance)
    labels = [f"{number} {_percent(chance)}" for number, chance in zip(tree.child_numbers, reach.tolist())]
    labels[0] = "●"
    width = 1 + max(map(len, labels))
    levels = tree.depth if columns is None else max(1, (columns - 2) // width)
    shown = _likeliest(tree, reach, lines or tree.size, levels)
    rows = _rows(tree, shown, labels, width)
    hidden = [node for node in range(tree.size) if node not in shown]
    if hidden:
        best = _percent(float(reach[hidden].max()))
        note = (
            f"{len(hidden):,} of {tree.size:,} nodes are hidden (after …, or below a loose ┬ or ├), each {best} or less"
        )
        rows.append(note)
    return "\n".join(rows)


def svg(tree: Tree, acceptance: ArrayLike) -> str:
    """The tree from top to bottom as an SVG document; the likelier a node, the larger and darker it is.

    Meant for up to some thousand nodes. ValueError for a bad `acceptance`, as for `expected_tokens`.
    """
    xs, ys, width, height = _layout(tree)
    heading = _headline(tree, acceptance)
    edges, nodes = [], []
    for node, chance in enumerate(expected_reach(tree, acceptance).tolist()):
        x, y, parent = xs[node], ys[node], tree.parents[node]
        colour = _colour(chance)
        radius = _between(*_RADII, chance**0.5)
        told = f"child {tree.child_numbers[node]} of node {parent}: {chance:.3g}" if node else "root"
        nodes.append(
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" fill="{colour}"><title>{told}</title></circle>'
        )
        if node:
            edges.append(f'<path d="M{xs[parent]:.2f} {ys[parent]:.2f}L{x:.2f} {y:.2f}" stroke="{colour}"/>')
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.2f} {height:.2f}">',
        f"<title>{heading}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="{_HEADING - 10}" font-family="sans-serif" font-size="14">{heading}</text>',
        *edges,
        *nodes,
        "</svg>\n",
    )
    return "\n".join(lines)


def _headline(tree: Tree, acceptance: ArrayLike) -> str:
    tokens = float(expected_reach(tree, acceptance).sum())
    nodes = "1 node" if tree.size == 1 else f"{tree.size:,} nodes"
    return f"{nodes} · depth {tree.depth:,} · {tokens:.2f} tokens per pass expected"


def _percent(chance: float) -> str:
    """At most 4 characters: 100%, 77%, 1%, .6%, 0%."""
    percent = 100 * chance
    if percent >= 0.95:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%".removeprefix("0") if percent >= 0.05 else "0%"


def _likeliest(tree: Tree, reach: Floats, lines: int, levels: int) -> set[int]:
    """The likeliest nodes that can be drawn in so many lines and levels, each with its parent."""
    shown: set[int] = {0}
    with_child: set[int] = set()
    for node in np.argsort(-reach, kind="stable").tolist():
        parent = tree.parents[node]
        if parent not in shown or tree.depths[node] > levels:
            continue
        lines -= parent in with_child  # a first child goes on in its parent's line
        if lines < 1:
            break
        shown.add(node)
        with_child.add(parent)
    return shown


def _rows(tree: Tree, shown: set[int], labels: list[str], width: int) -> list[str]:
    """One line for each of the `shown` nodes that has no shown child; a node's cell is `width` characters wide."""
    rows = []
    todo = [(0, "", "")]  # node, what stands left of its cell, the line that leads into it
    while todo:
        node, left, stroke = todo.pop()
        row = left
        while True:
            row += stroke + labels[node]
            children = [child for child in tree.children[node] if child in shown]
            if not children:
                break
            if node:
                left += ("│" if stroke in "┬├" else " ").ljust(width)
                row = row.ljust(len(left), "─")
            else:
                left = " "
            complete = len(children) == len(tree.children[node])
            for child in children[:0:-1]:
                todo.append((child, left, "└" if complete and child == children[-1] else "├"))
            node, stroke = children[0], "─" if complete and len(children) == 1 else "┬"
        rows.append(row + "…" if tree.children[node] else row)
    return rows


def _layout(tree: Tree) -> tuple[list[float], list[float], float, float]:
    """x and y of each node, then width and height of the picture."""
    leaves = int(np.count_nonzero(tree.child_count_array == 0))
    across = min(_LEAF_PITCH, (_WIDEST - 2 * _MARGIN) / leaves)
    down = min(_LEVEL_PITCH, (_TALLEST - _HEADING - 2 * _MARGIN) / max(1, tree.depth))
    width = max(_NARROWEST, leaves * across + 2 * _MARGIN)
    xs = (width - leaves * across) / 2 + _leaf_widths(tree) * across
    ys = _HEADING + _MARGIN + tree.depth_array * down
    return xs.tolist(), ys.tolist(), width, float(ys.max()) + _MARGIN


def _leaf_widths(tree: Tree) -> Floats:
    """Where each node stands: leaves side by side, 1 apart, any other node amid its children; float64 [size]."""
    places = np.empty(tree.size)
    leaves = 0
    for node in tree.post_order.tolist():
        if children := tree.children[node]:
            places[node] = (places[children[0]] + places[children[-1]]) / 2
        else:
            places[node] = leaves + 0.5
            leaves += 1
    return places


def _colour(chance: float) -> str:
    mixed = (round(_between(low, high, chance**0.3)) for low, high in zip(*_COLOURS))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * min(1.0, share)
