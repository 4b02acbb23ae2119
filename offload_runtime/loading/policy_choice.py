"""Chooses the tree policy for the loaded models."""

from offload_runtime.loading.models import LoadedModels
from offload_runtime.options.run_options import Options
from offload_runtime.speculation.automatic_tree import AutomaticTree
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from offload_runtime.speculation.lookup.ngram_lookup import NgramTrees
from offload_runtime.speculation.tree_policy import FixedTree, TreePolicy
from sequoia_tree.choice.choose import MAX_DEPTH


def tree_policy(models: LoadedModels, options: Options, known: LearnedAcceptance | None) -> TreePolicy:
    """The requested policy. Without a draft: n-gram lookup, if the target can hold a tree."""
    target, draft, plan = models.target, models.draft, models.plan
    if draft is None or known is None:
        can_branch = plan.tree_size > 1 and not target.model.cache.is_recurrent
        return NgramTrees(plan) if can_branch else TreePolicy()
    if options.tree != "auto":
        return FixedTree(draft, plan, options.tree, options.rule, known)
    depth = options.tree_depth if isinstance(options.tree_depth, int) else MAX_DEPTH
    return AutomaticTree(draft, target, plan, depth, options.rule, known)
