"""The runtime's own draft, trees and verification over recorded laws in place of models: an approximation.

Every node at depth d under position t of a text has the laws that were recorded at position t + d of it, whatever the
tokens on its branch; behind the end of a text the next one goes on. Laws that do not depend on the text at all are
replayed exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor

from comparison.cells import METHODS, Cell, Setting
from comparison.measure import Steps
from comparison.recording import Tape
from comparison.texts import observe_setting, sampling
from offload_runtime.generation.decode import Decoder, Request, Step
from offload_runtime.model.attention import PassRows
from offload_runtime.model.model import Model, never
from offload_runtime.model.rows import text_rows
from offload_runtime.options.run_options import Options
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from offload_runtime.speculation.target import Target
from offload_runtime.speculation.tree_policy import FixedTree
from offload_runtime.speculation.verification import Scored
from scheduler.plan.plan import Plan
from sequoia_tree.acceptance import Acceptance
from sequoia_tree.sampling import Sampling
from sequoia_tree.verify import Verdict

_MOST_ROWS = 1 << 16  # nothing is computed, so nothing limits a pass
_FIRST_TOKEN = 0  # stands for the prompt


class RecordedCache:
    """Counts rows as `TreeCache` does, and holds none."""

    is_recurrent = False

    def __init__(self) -> None:
        self.length = self.end = 0

    def truncate(self, length: int) -> None:
        self.length = self.end = min(length, self.length)

    def commit(self, rows: Sequence[int]) -> None:
        assert not rows or self.length + rows[-1] < self.end
        self.length += len(rows)
        self.end = self.length

    def rollback(self) -> None:
        self.end = self.length


class RecordedModel:
    """Answers by position as `Model` does by text: the token at position t is followed by the law recorded at t.

    laws: logits [n, vocab]. begin: where in them the text of the moment begins; they go on from their start.
    """

    def __init__(self, laws: Tensor):
        self.begin = 0
        self.device = torch.device("cpu")
        self.vocab_size = laws.shape[1]
        self.config = SimpleNamespace(eos_token_id=None, vocab_size=self.vocab_size)
        self.cache = RecordedCache()
        self.should_stop = never
        self.streamed_total = self.layers = self.layers_begun = 0
        self._laws = laws

    def take_up(self, prompt: int, common: int) -> None:
        """Turn to a text of which the cache keeps the rows in common."""
        self.cache.truncate(common)

    def reaches(self, text: int) -> None:
        """Laws by position do not change with the length of the text."""

    def room(self, text: int) -> int:
        """No text is too long."""
        return _MOST_ROWS

    def forward(self, tokens: Tensor, rows: PassRows, logits_to_keep: int) -> Tensor:
        """Logits ``[logits_to_keep, vocab]`` of the last rows, float32, whatever the tokens are."""
        assert tokens.shape == rows.row_positions.shape
        self.cache.end += len(tokens)
        return self._laws[(self.begin + rows.row_positions[-logits_to_keep:]) % len(self._laws)].float()

    def read(self, tokens: Sequence[int], most_rows: int) -> Tensor:
        """Append text; logits ``[1, vocab]`` after its end."""
        rows = text_rows(self.cache.length, len(tokens), self.device)
        logits = self.forward(torch.tensor(tokens), rows, logits_to_keep=1)
        self.cache.commit(range(len(tokens)))
        return logits


@dataclass(frozen=True)
class RecordedAcceptance:
    """One table that stays as it is, where the runtime has one for every sampling and refines it."""

    table: Acceptance

    def measured(self, sampling: Sampling) -> Acceptance:
        return self.table

    now = measured

    def learn(self, scored: Scored, verdict: Verdict) -> None:
        pass


@dataclass(frozen=True)
class Replay:
    """A recording's texts of one sampling, and the acceptance measured on all of them."""

    tape: Tape
    setting: Setting
    acceptance: Acceptance

    @classmethod
    def of(cls, tape: Tape, setting: Setting, seed: int) -> "Replay":
        generator = torch.Generator().manual_seed(seed)
        pieces = zip(tape.begins, tape.begins[1:])
        tables = (
            observe_setting(tape.target[a:b].float(), tape.draft[a:b].float(), setting, generator) for a, b in pieces
        )
        return cls(tape, setting, sum(tables, Acceptance.empty()))

    def steps(self, cell: Cell) -> Steps:
        """Replies of a method; reply i goes over text i."""
        target = RecordedModel(self.tape.target)
        models, policy, draft = [target], None, None
        if METHODS[cell.method].tree != "none":
            models.append(RecordedModel(self.tape.draft))
            draft = Draft(cast(Model, models[1]), target.vocab_size, _MOST_ROWS)
            policy = self._policy(draft, cell)
        decoder = Decoder(Target(cast(Model, target), _MOST_ROWS), draft, policy)

        def reply(text: int, seed: int) -> Iterator[Step]:
            for model in models:
                model.begin = self.tape.begins[text]
            decoder.text = []
            request = Request(
                prompt=[_FIRST_TOKEN],
                sampling=sampling(self.setting),
                max_new_tokens=_MOST_ROWS,
                end_token_ids=frozenset(),
                generator=torch.Generator().manual_seed(seed),
            )
            return decoder.steps(request)

        return reply

    def _policy(self, draft: Draft, cell: Cell) -> FixedTree:
        method = METHODS[cell.method]
        rule = Options(model=Path(), tree=method.tree, verification=method.verification).rule
        limits = SimpleNamespace(tree_size=cell.size, tree_depth=cell.depth)
        known = RecordedAcceptance(self.acceptance)
        return FixedTree(draft, cast(Plan, limits), method.tree, rule, cast(LearnedAcceptance, known))
