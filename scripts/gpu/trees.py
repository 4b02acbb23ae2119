"""Trees to time passes with: of the shape that real ones have, with made-up tokens."""

import numpy as np

from offload_runtime.speculation.draft_tree import DraftTree
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE, optimal_tree


def made_up_tree(nodes: int, root: int, vocab_size: int) -> DraftTree:
    """The best tree of so many nodes for the published acceptance; its tokens mean nothing."""
    tree = optimal_tree(DEFAULT_ACCEPTANCE, nodes)
    tokens = np.random.default_rng(0).integers(vocab_size, size=tree.size).tolist()
    unknown = np.full(tree.size, -1)
    return DraftTree(tree, [root, *tokens[1:]], 1, unknown, None, unknown)
