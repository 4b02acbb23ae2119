"""A draft head as the draft: it reads texts with features of the target, and nodes of a tree with features of its own.

The features of a token are the target's hidden state of the token before it. Those of the text come out of the passes
that the target runs anyway; the head reads them before the next pass. A node of the tree has not been read by the
target, so its features are the head's own hidden state at its parent. Once the target has accepted a node, the head
reads it again with the true features: its rows of a tree are never kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offload_runtime.model.cached_sequence import CachedSequence
from offload_runtime.model.heads.head_model import HeadModel
from offload_runtime.model.heads.text_features import TextFeatures
from offload_runtime.model.model import Model
from offload_runtime.model.pass_part import PassPart, passes, run_together
from offload_runtime.model.rows import PassRows, text_rows
from offload_runtime.speculation.draft import Draft, Growth
from offload_runtime.speculation.growth import run_growths
from sequoia_tree.uploads import upload


@dataclass(frozen=True)
class HeadPart(PassPart):
    """features: [n, width]. outputs: where the hidden states of the last rows go, [their count, width]."""

    features: Tensor
    outputs: Tensor


class HeadDraft(Draft):
    """Drafts for `target`, whose sequences keep the features of their texts."""

    model: HeadModel

    def __init__(self, model: HeadModel, target: Model, vocab_size: int, most_rows: int):
        super().__init__(model, vocab_size, most_rows)
        self._target = target

    def can_follow(self, unread: int, length: int) -> bool:
        """Only a text of which the target has read all but the last token: else there are no features to go on from."""
        return unread <= 1 < length

    def must_read(self, coming: int, sequence: int) -> bool:
        """Whether a pass of the target over `coming` more rows of a text needs the room of what waits to be read."""
        return not self._features(sequence).has_room(min(coming, self._most_rows))

    @torch.inference_mode()
    def run(self, parts: Sequence[PassPart]) -> list[Tensor]:
        """The logits ``[wanted, vocab]`` of each part; parts of several texts share passes."""
        logits: list[Tensor] = []
        for together in passes(parts, self._most_rows):
            heads = [part for part in together if isinstance(part, HeadPart)]
            assert len(heads) == len(together)
            self.model.give(heads[0].features if len(heads) == 1 else torch.cat([part.features for part in heads]))
            logits += run_together(self.model, together)
            self._keep(heads)
        return [self._fit(each) for each in logits]

    def reading(self, text: Sequence[int], sequence: int = 0) -> Growth[Tensor]:
        """Read a text as far as the target has; returns logits ``[1, vocab]`` after the last token that it reads.

        A text that the target has not begun gives none: use `following` where there may be one.
        """
        logits = None
        for part in self._pieces(text, sequence):
            logits = yield part
            self._cached(sequence).commit(range(part.rows.count))
            self._features(sequence).taken = self._cached(sequence).length
        assert logits is not None
        return logits

    def following(self, text: Sequence[int], sequence: int = 0) -> Growth[object]:
        """Read along with the target, however far that has come."""
        if min(len(text) - 1, self._target.cache.sequences[sequence].length) < 1:
            return None
        return (yield from self.reading(text, sequence))

    def along(self, text: Sequence[int], begin: int, count: int, sequence: int = 0) -> Tensor:
        """The logits ``[count, vocab]`` after the tokens from `begin` (at least 1) on, which the target has read.

        For measurements: in trees, nodes read the head's own hidden states.
        """
        run_growths([self.following(text[:begin], sequence)], self.run)
        cached = self._cached(sequence)
        cached.truncate(begin - 1)
        rows = text_rows(begin - 1, count, self.model.device, cached.first_row)
        features = self.model.project(self._features(sequence).of(begin - 1, count))
        tokens = upload(text[begin : begin + count], self.model.device)
        logits = self.run([HeadPart(tokens, rows, count, features, self.model.outputs[sequence, :count])])[0]
        cached.commit(range(count))
        self._features(sequence).taken = cached.length
        return logits

    def nodes(self, tokens: Tensor, depths: Tensor, visible: Tensor, sequence: int = 0) -> PassPart:
        """New nodes, as of any draft. Their features are the hidden states of their parents."""
        cached, outputs = self._cached(sequence), self.model.outputs[sequence]
        new, columns = visible.shape
        own = depths[columns - new :]
        rows = PassRows(cached.length, cached.length - 1 + depths, visible, cached.first_row)
        is_parent = visible & (depths[None, :] == own[:, None] - 1)
        parents = torch.where(own > 1, is_parent.to(torch.uint8).argmax(dim=1) + 1, 0)  # 0 is the text's last token
        features, kept = outputs.index_select(0, parents), outputs[1 + columns - new : 1 + columns]
        return HeadPart(tokens.clamp(0, self.model.vocab_size - 1), rows, new, features, kept)

    def commit(self, columns: Sequence[int], sequence: int = 0) -> None:
        """Drop the rows of the tree: accepted nodes are read again, with the target's features."""
        self._cached(sequence).rollback()

    def _pieces(self, text: Sequence[int], sequence: int) -> Iterator[HeadPart]:
        """Of what the head has not read; the last row is always read again, for its logits."""
        cached, features = self._cached(sequence), self._features(sequence)
        end = min(len(text) - 1, self._target.cache.sequences[sequence].length)
        cached.truncate(end - 1)
        while cached.length < end:
            begin = cached.length
            count = min(end - begin, self._most_rows)
            known = [min(token, self.model.vocab_size - 1) for token in text[begin + 1 : begin + 1 + count]]
            rows = text_rows(begin, count, self.model.device, cached.first_row)
            of_target = self.model.project(features.of(begin, count))
            yield HeadPart(upload(known, self.model.device), rows, 1, of_target, self.model.outputs[sequence, :1])

    def _keep(self, parts: Sequence[HeadPart]) -> None:
        """Keep the head's hidden states at the last rows of each part of a pass."""
        end = 0
        for part in parts:
            end += part.rows.count
            part.outputs.copy_(self.model.own.rows[end - len(part.outputs) : end])

    def _cached(self, sequence: int) -> CachedSequence:
        return self.model.cache.sequences[sequence]

    def _features(self, sequence: int) -> TextFeatures:
        features = self._target.cache.sequences[sequence].features
        assert features is not None
        return features
