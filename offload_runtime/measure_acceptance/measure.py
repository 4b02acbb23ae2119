"""Generates replies with the target and compares both models' distributions at every token of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from loaders.progress import StageProgress
from offload_runtime.chat.status import duration
from offload_runtime.generation.out_of_memory import out_of_memory_explained
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.loading.models import LoadedModels, load_models
from offload_runtime.measure_acceptance.written import WrittenReplies
from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_rows
from offload_runtime.planning.planning import Preparation
from offload_runtime.speculation.acceptance_store import Measurement, Setting
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.growth import run_growths
from offload_runtime.speculation.heads.head_draft import HeadDraft
from offload_runtime.speculation.self_draft import SelfDraft
from offload_runtime.text.prompt import Prompt, encode_prompt
from scheduler.machine.cuda import current_device
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.acceptance.observe import observe_distributions, observe_greedy
from sequoia_tree.shaping.settings import Sampling
from sequoia_tree.verification.sampling import log_probs

Note = Callable[[str], None]
PROBE_TOKENS = 16  # of the reply that the speed is measured with before anything is announced
LEVELS = 16  # of its own rows that a copy of the target reads at most, about as many as a path of accepted nodes has


@dataclass(frozen=True)
class Workload:
    """What the target writes: at least `positions` tokens per setting, in replies of at most `max_new_tokens`.

    minutes: use fewer positions if they would take longer than this; None sets no limit.
    """

    prompts: Sequence[Prompt]
    max_new_tokens: int
    positions: int
    seed: int
    minutes: int | None = None

    def tokens(self, settings: Sequence[Setting]) -> int:
        """Tokens written in total; greedy replies are written once."""
        greedy = min(self.positions, len(self.prompts) * self.max_new_tokens)
        return sum(self.positions if setting.temperature else greedy for setting in settings)


@dataclass(frozen=True)
class WrittenReply:
    """A prompt, by its number and as token ids, and the target's reply to it."""

    number: int
    prompt: list[int]
    reply: list[int]


@dataclass(frozen=True)
class Measured:
    """The observations at one setting. prompts: one table per prompt, since replies to one prompt are correlated."""

    setting: Setting
    prompts: tuple[Acceptance, ...]
    agreement: float

    @property
    def total(self) -> Acceptance:
        return sum(self.prompts, start=Acceptance.empty())

    @property
    def measurement(self) -> Measurement:
        """The stored form: child 1 gets the whole overlap of the distributions, which is 1 - total variation."""
        overlap = float(self.total.positional()[0]) if self.setting.temperature else None
        return Measurement(self.total, self.agreement, overlap)


def measure(
    preparation: Preparation,
    workload: Workload,
    settings: Sequence[Setting],
    loading: StageProgress,
    note: Note,
    written: WrittenReplies | None = None,
) -> list[Measured]:
    """Let the target write at every setting, then load both models and observe the texts.

    written: replies of an interrupted run, and where new ones are kept.
    """
    replies = WrittenReplies(None) if written is None else written
    with OffloadRuntime(preparation, loading) as runtime:
        workload = within_minutes(workload, settings, _speed(runtime, workload, settings[0]), note)
        texts = {setting: list(write_texts(runtime, workload, setting, note, replies)) for setting in settings}
    with (
        closing(load_models(preparation, loading)) as models,
        current_device(models.target.model.device),
        out_of_memory_explained(models.plan),
    ):
        return [_measured(models, setting, texts[setting], workload.seed, note) for setting in settings]


def _speed(runtime: OffloadRuntime, workload: Workload, setting: Setting) -> float:
    """Tokens per second of a short reply."""
    most = min(PROBE_TOKENS, workload.max_new_tokens)
    stats = runtime.generate(workload.prompts[0], max_new_tokens=most, seed=workload.seed, **asdict(setting)).stats
    return stats.reply_tokens_per_second or stats.tokens_per_second


def within_minutes(workload: Workload, settings: Sequence[Setting], speed: float, note: Note) -> Workload:
    """The workload, cut to what its minutes allow; notes how long it takes. speed: in tokens/s."""
    if workload.minutes is not None:
        most = int(workload.minutes * 60 * speed / len(settings))
        workload = replace(workload, positions=max(1, min(workload.positions, most)))
    seconds = duration(workload.tokens(settings) / speed)
    count = f"{len(settings)} setting{'s' * (len(settings) != 1)} of {workload.positions} tokens"
    shorter = "; --quick takes 5 min" if workload.minutes is None else ""
    note(
        f"{count} at {speed:.2g} tokens/s: about {seconds}{shorter}. After Ctrl-C the same command goes on from there."
    )
    return workload


def write_texts(
    runtime: OffloadRuntime, workload: Workload, setting: Setting, note: Note, replies: WrittenReplies
) -> Iterator[WrittenReply]:
    """Replies to the prompts in turn until there are enough tokens; one greedy reply per prompt."""
    written = 0
    for number in count() if setting.temperature else range(len(workload.prompts)):
        prompt = workload.prompts[number % len(workload.prompts)]
        ids = encode_prompt(prompt, lambda: runtime.tokenizer)
        room = min(workload.max_new_tokens, workload.positions - written)
        seed, values = workload.seed + number, asdict(setting)
        question = [values, seed, room, ids]
        reply = replies.get(question)
        if reply is None:
            reply = runtime.generate(prompt, max_new_tokens=room, seed=seed, **values).token_ids
            replies.add(question, reply)
        yield WrittenReply(number % len(workload.prompts), ids, reply)
        written += len(reply)
        note(f"{_name(setting)}: {written}/{workload.positions} tokens written")
        if written >= workload.positions:
            return


def observe_text(
    models: LoadedModels, text: WrittenReply, setting: Setting, generator: torch.Generator
) -> tuple[Acceptance, int]:
    """Acceptance over the contexts of a reply, and at how many of them both models have the same argmax."""
    assert models.draft is not None
    target, plan = models.target.model, models.plan
    sampling, table, agreements = Sampling(**asdict(setting)), Acceptance.empty(), 0
    rows = min(plan.tree_size, plan.rows)  # the plan has room for this many logits
    for p, q in _both_logits(target, models.draft, text, plan.rows, rows):
        q = _fit(q, p.shape[1])
        agreements += int((p.argmax(-1) == q.argmax(-1)).sum())
        if setting.temperature == 0:
            table += observe_greedy(p, q)
        else:
            table += observe_distributions(log_probs(p, sampling), log_probs(q, sampling), generator)
    return table, agreements


def _measured(models: LoadedModels, setting: Setting, texts: Sequence[WrittenReply], seed: int, note: Note) -> Measured:
    generator = torch.Generator(models.target.model.device).manual_seed(seed)
    by_prompt: dict[int, Acceptance] = {}
    agreements = 0
    for done, text in enumerate(texts, start=1):
        table, agreeing = observe_text(models, text, setting, generator)
        by_prompt[text.number] = by_prompt.get(text.number, Acceptance.empty()) + table
        agreements += agreeing
        note(f"{_name(setting)}: {done}/{len(texts)} replies measured")
    return Measured(setting, tuple(by_prompt.values()), agreements / sum(len(text.reply) for text in texts))


def _both_logits(
    target: Model, draft: Draft, text: WrittenReply, most_rows: int, most_logits: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of target and draft before the tokens of the reply. A head reads what the target has just computed."""
    first, tokens = len(text.prompt) - 1, [*text.prompt, *text.reply[:-1]]
    if isinstance(draft, SelfDraft):
        return _copy_logits(draft, target, tokens, first, most_rows, most_logits)
    if not isinstance(draft, HeadDraft):
        models = (target, draft.model)
        return zip(*(_reply_logits(model, tokens, first, most_rows, most_logits) for model in models))
    first = max(first, 1)  # before that the target has no states
    draft.model.cache.truncate(0)
    read = lambda end: run_growths([draft.following(tokens[: end + 1])], draft.run)  # noqa: E731
    of_target = _reply_logits(target, tokens, first, most_rows, most_logits, read)
    return zip(of_target, _head_logits(draft, tokens, first, most_logits))


def _copy_logits(
    draft: SelfDraft, target: Model, tokens: Sequence[int], first: int, most_rows: int, most_logits: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of the target and its copy, which reads the target's rows up to each piece and its own within it.

    So contexts are those of nodes at up to `LEVELS` levels below what the target has read.
    """
    drafted: list[Tensor] = []

    def draft_piece(piece: Tensor) -> None:
        with draft.running():
            drafted.append(
                target.forward(piece, text_rows(target.cache.sequences[0].length, len(piece), piece.device), len(piece))
            )
        target.cache.rollback()  # its rows are not the target's

    of_target = _reply_logits(target, tokens, first, most_rows, min(most_logits, LEVELS), before=draft_piece)
    return ((logits, drafted.pop()) for logits in of_target)


def _reply_logits(
    model: Model,
    tokens: Sequence[int],
    first: int,
    most_rows: int,
    most_logits: int,
    read: Callable[[int], object] = lambda end: None,
    before: Callable[[Tensor], object] = lambda piece: None,
) -> Iterator[Tensor]:
    """Logits [n, vocab] after every token from `first` on, at most `most_logits` at a time.

    read: called with the number of tokens that have been read, while only reading. before: with the tokens of every
    piece whose logits come next.
    """
    tokens = [min(token, model.vocab_size - 1) for token in tokens]
    model.cache.truncate(0)
    for begin in range(0, first, most_rows):
        model.read(tokens[begin : min(first, begin + most_rows)], most_rows)
        read(min(first, begin + most_rows))
    for begin in range(first, len(tokens), most_logits):
        piece = torch.tensor(tokens[begin : begin + most_logits], device=model.device)
        before(piece)
        logits = model.forward(piece, text_rows(model.cache.sequences[0].length, len(piece), model.device), len(piece))
        model.cache.sequences[0].commit(range(len(piece)))
        yield logits


def _head_logits(draft: HeadDraft, tokens: Sequence[int], first: int, most_logits: int) -> Iterator[Tensor]:
    """The same of a head, after the target has read as far."""
    for begin in range(first, len(tokens), most_logits):
        yield draft.along(tokens, begin, min(most_logits, len(tokens) - begin))


def _fit(logits: Tensor, vocab_size: int) -> Tensor:
    """Cut or pad the draft's logits [n, draft vocab] to the target's vocabulary; a padded token is never sampled."""
    surplus = vocab_size - logits.shape[1]
    return F.pad(logits, (0, surplus), value=-torch.inf) if surplus > 0 else logits[:, :vocab_size]


def _name(setting: Setting) -> str:
    return f"temperature {setting.temperature:g}" + (f", top-p {setting.top_p:g}" if setting.top_p < 1 else "")
