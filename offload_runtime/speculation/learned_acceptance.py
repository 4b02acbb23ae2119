"""The known acceptance of a pair: measured before, and refined by every pass."""

from pathlib import Path

import numpy as np
import torch

from offload_runtime.speculation import acceptance_store
from offload_runtime.speculation.acceptance_store import Drafter, Setting
from offload_runtime.speculation.verification import Scored
from sequoia_tree.acceptance.acceptance import MAX_CHILDREN, Acceptance
from sequoia_tree.acceptance.families import families
from sequoia_tree.acceptance.observe import observe, observe_greedy
from sequoia_tree.shaping.by_sampling import BySampling
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.uploads import upload
from sequoia_tree.verification.verify import AcceptedPath

# Most positions that the table of another setting counts for, so that a hundred passes at this one outweigh it.
_BORROWED = 300.0
# Positions after which only every eighth pass is evaluated: the rest is not worth the time.
_ENOUGH = 2000.0
_SPARSELY = 8
MOST_LEARNT = 256  # samplings of which it is remembered what was learnt, a few kilobytes each


class LearnedAcceptance:
    """Acceptance tables by sampling. A pass only influences later passes, so outputs stay exact."""

    def __init__(self, target: Path, draft: Drafter):
        """Raises ModelFilesError where the file beside the draft's weights is damaged."""
        self._measured = acceptance_store.load(target, draft)
        self._now: BySampling[Acceptance] = BySampling(MOST_LEARNT)
        self._passes = 0

    def measured(self, sampling: Sampling) -> Acceptance:
        """What was known before the first pass: for this setting, or the nearest one with less weight."""
        nearest = self._measured and self._measured.nearest(Setting.of(sampling))
        if not nearest:
            return Acceptance.empty()
        table, exact = nearest
        return table if exact else table.at_most(_BORROWED)

    def now(self, sampling: Sampling) -> Acceptance:
        """What is known now; the same object until something is learnt."""
        return self._now.obtain(lambda: self.measured(sampling), sampling)

    def learn(self, scored: Scored, accepted_path: AcceptedPath) -> None:
        """Record the positions on the accepted path whose children were drawn without replacement."""
        self._passes += 1
        sampling = scored.sampling
        if self._passes % _SPARSELY and self.now(sampling).positions > _ENOUGH:
            return
        nodes = np.array([0, *accepted_path.path])
        nodes = nodes[scored.drawn.distribution_rows[nodes] >= 0]
        if len(nodes):
            seen = (_drawn if sampling.temperature else _greedy)(scored, nodes)
            self._now.put(self.now(sampling) + seen, sampling)


@torch.inference_mode()
def _drawn(scored: Scored, nodes: np.ndarray) -> Acceptance:
    distributions, device = scored.distributions, scored.logits.device
    seen = Acceptance.empty()
    for family in families(scored.drawn.drawn_part, nodes, distributions.most_rows(device), device):
        children = torch.where(family.present, scored.tokens[family.children], -1)[:, : MAX_CHILDREN - 1]
        seen += observe(distributions.target(family.parents), distributions.draft(family.parents), children)
    return seen


@torch.inference_mode()
def _greedy(scored: Scored, nodes: np.ndarray) -> Acceptance:
    ids = upload(nodes, scored.logits.device)
    return observe_greedy(scored.processed(ids), scored.draft_distribution(ids))
