"""Texts that the target writes, and what both models think of them place by place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from comparison.cells import Setting
from comparison.pair import Pair
from loaders.hub.names import directory_name
from offload_runtime.generation.loading import LoadedModels
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_rows
from offload_runtime.speculation.acceptance_store import ACCEPTANCE_FILE, Measurement, PairAcceptance, load, write
from offload_runtime.speculation.acceptance_store import Setting as StoredSetting
from sequoia_tree.acceptance import Acceptance
from sequoia_tree.observe import observe_greedy, observe_laws
from sequoia_tree.sampling import Sampling, log_law

_ROWS = 64  # of one pass that gives logits at every row


@dataclass(frozen=True)
class Text:
    """A prompt and the target's reply, as token ids."""

    prompt: list[int]
    reply: list[int]


def write_texts(pair: Pair, settings: list[Setting], contexts: int, seed: int) -> dict[Setting, list[Text]]:
    """By sampling, replies of the target to the prompts in turn, until they have `contexts` tokens.

    At temperature 0, where replies to one prompt are the same, at most one to each.
    """
    with pair.runtime("auto", 1, 0) as runtime:
        return {setting: list(_write(pair, runtime, setting, contexts, seed)) for setting in settings}


def _write(pair: Pair, runtime: OffloadRuntime, setting: Setting, contexts: int, seed: int) -> Iterator[Text]:
    steps = pair.steps(runtime, setting)
    written = 0
    for number in count():
        if written >= contexts or (setting.temperature == 0 and number >= len(pair.prompts)):
            return
        prompt = number % len(pair.prompts)
        reply: list[int] = []
        for step in steps(prompt, seed + number):
            reply += step.token_ids
            if len(reply) >= pair.reply_tokens:
                break
        written += len(reply)
        yield Text(pair.prompts[prompt], reply[: pair.reply_tokens])


@dataclass(frozen=True)
class Reader:
    """Both models, loaded to be read along given texts."""

    models: LoadedModels

    def logits(self, text: Text) -> tuple[Tensor, Tensor]:
        """Of target and draft at every token of the reply, float [reply, vocab]: row i is the law of its token i."""
        target, draft = self.models.target.model, self.models.draft.model if self.models.draft else None
        assert draft is not None
        ours, theirs = _logits(target, text), _logits(draft, text)
        surplus = ours.shape[1] - theirs.shape[1]
        theirs = F.pad(theirs, (0, surplus), value=-torch.inf) if surplus > 0 else theirs[:, : ours.shape[1]]
        return ours, theirs


@contextmanager
def reader_of(pair: Pair) -> Iterator[Reader]:
    """The pair, loaded for the block."""
    with pair.models(size=2, depth=1) as models:
        yield Reader(models)


@torch.inference_mode()
def _logits(model: Model, text: Text) -> Tensor:
    tokens = [min(token, model.vocab_size - 1) for token in (*text.prompt, *text.reply[:-1])]
    model.cache.truncate(0)
    begin = len(text.prompt) - 1
    if begin:
        model.read(tokens[:begin], _ROWS)
    found = []
    for first in range(begin, len(tokens), _ROWS):
        piece = torch.tensor(tokens[first : first + _ROWS], device=model.device)
        found.append(model.forward(piece, text_rows(first, len(piece), model.device), len(piece)).float().cpu())
        model.cache.commit(range(len(piece)))
    return torch.cat(found)


def observe_beside(pair: Pair, settings: list[Setting], contexts: int, seed: int) -> None:
    """Measure acceptance along texts that the target writes, and write it beside the draft's weights."""
    assert isinstance(pair.options.draft, Path)
    tables = _observe(pair, settings, contexts, seed)
    measured = {_stored(setting): Measurement(table) for setting, table in tables.items()}
    model, draft = pair.options.model, pair.options.draft
    write(draft / ACCEPTANCE_FILE, PairAcceptance(directory_name(model), draft.name, measured), model)


def acceptance_tables(
    pair: Pair, settings: list[Setting], contexts: int, seed: int, note: Callable[[str], None]
) -> dict[Setting, Acceptance]:
    """Of every setting what was measured of the pair before; where nothing was, it is measured now and not kept."""
    assert isinstance(pair.options.draft, Path)
    known = load(pair.options.model, pair.options.draft)
    measured = known.measurements if known else {}
    tables = {s: measured[_stored(s)].acceptance for s in settings if _stored(s) in measured}
    missing = [setting for setting in settings if setting not in tables]
    if missing:
        note(f"measuring acceptance at {contexts} places of each of: {'; '.join(map(str, missing))}")
        tables.update(_observe(pair, missing, contexts, seed))
    return tables


def _stored(setting: Setting) -> StoredSetting:
    return StoredSetting(setting.temperature, top_p=setting.top_p)


def _observe(pair: Pair, settings: list[Setting], contexts: int, seed: int) -> dict[Setting, Acceptance]:
    texts = write_texts(pair, settings, contexts, seed)
    with reader_of(pair) as reader:
        return {setting: _observe_texts(reader, setting, texts[setting], seed) for setting in settings}


def _observe_texts(reader: Reader, setting: Setting, texts: list[Text], seed: int) -> Acceptance:
    generator = torch.Generator().manual_seed(seed)
    tables = (observe_setting(*reader.logits(text), setting, generator) for text in texts)
    return sum(tables, Acceptance.empty())


def observe_setting(target: Tensor, draft: Tensor, setting: Setting, generator: torch.Generator) -> Acceptance:
    """What logits [n, vocab] of target and draft show of acceptance under a sampling."""
    if setting.temperature == 0:
        return observe_greedy(target, draft)
    shaped = sampling(setting)
    return observe_laws(log_law(target, shaped), log_law(draft, shaped), generator)


def sampling(setting: Setting) -> Sampling:
    """The setting, and nothing else that shapes laws."""
    return Sampling(temperature=setting.temperature, top_p=setting.top_p)
