"""Trees of draft tokens: their shape, how they are drawn, how a target model's distributions verify them.

Numbers in, numbers out: nothing here knows a model or a file. This module needs numpy alone; the parts that work on
tensors are `sequoia_tree.verification.sampling` and `sequoia_tree.verification.verify`.
"""

from sequoia_tree.shapes.baselines import best_chains, chains, k_ary
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE, chain, expected_tokens, optimal_tree
from sequoia_tree.tree import Tree

__all__ = ["DEFAULT_ACCEPTANCE", "Tree", "best_chains", "chain", "chains", "expected_tokens", "k_ary", "optimal_tree"]

__project__ = "sequoia-offload"  # tells `offload_runtime.start` that this is not another package of that name
