"""N-gram lookup, trees without a draft: where the text repeats itself, one target pass checks the earlier continuation.

Drafting needs no device work: the end of the text is looked up in the text, in about 0.1 ms. The tokens depend on the
text alone, so matching keeps the target's distribution (see `verify_match`). A tree is proposed only if it is expected
to give more tokens per second than plain decoding, judged by the acceptance of earlier matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from offload_runtime.speculation.draft import Growth
from offload_runtime.speculation.draft_tree import DraftTree
from offload_runtime.speculation.methods import Method
from offload_runtime.speculation.tree_policy import PassFacts, Situation, TreePolicy, most_nodes
from offload_runtime.speculation.verification import Scored
from scheduler.plan.plan import Plan
from sequoia_tree.choice.pass_times import PassTimes
from sequoia_tree.drafting.end_tokens import up_to_end
from sequoia_tree.drafting.suffix import LONGEST_MATCH, SuffixMatcher
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.tree import Tree
from sequoia_tree.verification.verify import AcceptedPath

NAME = "ngram"
LEAST_MATCH = 2  # tokens in a row that must have occurred before
_OCCURRENCES = 4  # most earlier occurrences whose continuations are used
_LEAST_GAIN = 1.03  # least gain in tokens per second over plain decoding: the error of measured times
_LEAST_PASSES = 2  # passes to be timed before a tree is proposed, where nothing streams
_LEAST_SECONDS = 1e-9  # of a pass whose time is not known
# With a seed, trees must not depend on timings or on what was learnt, so nodes need at least this probability: where
# computing them takes time, and where it is hidden behind the link.
_LIKELY, _LIKELY_STREAMED = 0.3, 0.02


class Chances:
    """The probability that the continuation of an earlier occurrence is right, by the length of the match."""

    _PRIOR_TRIALS = 4.0
    _LARGEST = 0.98

    def __init__(self) -> None:
        lengths = np.arange(LONGEST_MATCH + 1)
        self._right = self._PRIOR_TRIALS * lengths / (lengths + 3)  # 0.5 for a match of three tokens
        self._trials = np.full(LONGEST_MATCH + 1, self._PRIOR_TRIALS)

    def of(self, length: int) -> float:
        """For a match of `length` tokens."""
        length = min(length, LONGEST_MATCH)
        return min(self._LARGEST, float(self._right[length] / self._trials[length]))

    def add(self, length: int, right: bool) -> None:
        """Record the outcome of a match of `length` tokens."""
        length = min(length, LONGEST_MATCH)
        self._trials[length] += 1
        self._right[length] += right


@dataclass(frozen=True)
class Repetition:
    """Candidate nodes, likeliest first, below a root that is node 0.

    parents, tokens: of node i + 1. reach: the probability that node i + 1 is accepted, descending. lengths: of every
    node including the root, the length of the match when its first child is tried.
    """

    parents: list[int]
    tokens: list[int]
    reach: list[float]
    lengths: list[int]


def repetition(found: Sequence[tuple[int, Sequence[int]]], chances: Chances, most: int) -> Repetition:
    """A prefix tree of at most `most` nodes over the continuations `found`: [(length of the match, continuation)]."""
    parents, tokens, reach, lengths = [-1], [-1], [1.0], [found[0][0] if found else 0]
    left = [1.0]  # of each node's reach, minus its children's
    children: dict[tuple[int, int], int] = {}
    for length, followed in found:
        node = 0
        for offset, token in enumerate(followed):
            child = children.get((node, token))
            if child is None:
                child = children[node, token] = len(parents)
                share = left[node] * chances.of(length + offset)
                left[node] -= share
                parents.append(node)
                tokens.append(token)
                reach.append(share)
                left.append(share)
                lengths.append(length + offset + 1)
            node = child
    order = sorted(range(1, len(parents)), key=lambda node: -reach[node])[:most]  # stable: parents stay before children
    number = {0: 0, **{node: index for index, node in enumerate(order, start=1)}}
    return Repetition(
        [number[parents[node]] for node in order],
        [tokens[node] for node in order],
        [reach[node] for node in order],
        [lengths[node] for node in (0, *order)],
    )


class NgramTrees(TreePolicy):
    """The policy for decoding without a draft; see the module's docstring."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._matchers: dict[int, SuffixMatcher] = {}  # by the text's sequence in the caches
        self._prior, self._chances = Chances(), Chances()
        self._times = PassTimes(floor=plan.seconds_per_pass or 0.0)
        self._timed = 0
        self._latest: dict[int, tuple[DraftTree, list[int]]] = {}
        self._methods: dict[tuple[bool, int, int], Method] = {}

    def method(self, situation: Situation) -> Method:
        fixed = situation.repeatable and bool(situation.sampling.temperature)
        key = fixed, most_nodes(self._plan, situation), situation.sharing
        if key not in self._methods:
            fixed, nodes, sharing = key
            growing = partial(self._growing, fixed=fixed, most_nodes=nodes, sharing=sharing)
            self._methods[key] = Method(NAME, growing, "match", most_nodes=nodes)
        return self._methods[key]

    def learn(self, method: Method, scored: Scored, accepted_path: AcceptedPath) -> None:
        lengths = next((lengths for drawn, lengths in self._latest.values() if drawn is scored.drawn), None)
        if lengths is None:
            return
        parents = scored.drawn.tree.parents
        first = {parents[node]: node for node in range(len(parents) - 1, 0, -1)}
        accepted = set(accepted_path.path)
        for node in (0, *accepted_path.path):
            if node in first:
                self._chances.add(lengths[node], first[node] in accepted)

    def passed(self, facts: PassFacts) -> None:
        if facts.rows <= self._plan.rows:  # else it took several passes
            self._times.add(facts.rows, facts.target_seconds)
            self._timed += 1

    def _growing(
        self,
        text: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
        sequence: int,
        ends: frozenset[int],
        fixed: bool,
        most_nodes: int,
        sharing: int,
    ) -> Growth[DraftTree]:
        return self._tree(text, sequence, ends, fixed, most_nodes, sharing)
        yield  # asks for no pass

    def _tree(
        self, text: Sequence[int], sequence: int, ends: frozenset[int], fixed: bool, most_nodes: int, sharing: int
    ) -> DraftTree:
        self._latest.pop(sequence, None)
        most = min(most_nodes - 1, self._plan.tree_depth * _OCCURRENCES)
        found = [(length, up_to_end(followed, ends)) for length, followed in self._find(text, sequence)]
        if not found or most < 1:
            return DraftTree.root_only(text[-1])
        repeated = repetition(found, self._prior if fixed else self._chances, most)
        count = self._likely(repeated.reach) if fixed else self._worthwhile(repeated.reach, sharing)
        if not count:
            return DraftTree.root_only(text[-1])
        none = np.full(count + 1, -1)
        tree = Tree([-1, *repeated.parents[:count]])
        drawn = DraftTree(tree, [text[-1], *repeated.tokens[:count]], 1, none, None, none)
        self._latest[sequence] = drawn, repeated.lengths[: count + 1]
        return drawn

    def _find(self, text: Sequence[int], sequence: int) -> list[tuple[int, list[int]]]:
        matcher = self._matchers.setdefault(sequence, SuffixMatcher())
        matcher.follow(text)
        return matcher.continuations(_OCCURRENCES, self._plan.tree_depth, LEAST_MATCH)

    def _likely(self, reach: Sequence[float]) -> int:
        least = _LIKELY_STREAMED if self._plan.slots else _LIKELY
        return sum(value >= least for value in reach)

    def _worthwhile(self, reach: Sequence[float], sharing: int = 1) -> int:
        """The number of nodes with the most tokens per second; only powers of two and the whole tree are tried.

        The other texts of the pass are taken to have as many.
        """
        if not self._plan.seconds_per_pass and self._timed < _LEAST_PASSES:
            return 0
        plain = max(self._times.seconds(sharing), _LEAST_SECONDS)
        expected = np.cumsum([1.0, *reach])
        best, best_rate = 0, _LEAST_GAIN / plain
        for size in (*(2**k for k in range(1, 12) if 2**k <= len(reach)), len(reach) + 1):
            rate = expected[size - 1] / max(self._times.seconds(sharing * size), plain)
            if rate > best_rate:
                best, best_rate = size - 1, rate
        return best
