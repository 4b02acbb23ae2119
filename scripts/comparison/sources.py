"""Where replies come from: the pair of models, or laws that were recorded of it."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from comparison.cells import METHODS, Cell, Measured, Setting
from comparison.measure import Workload, measure_cell
from comparison.pair import Pair, load_key
from comparison.prompts import digest, encoded_prompts
from comparison.recording import Recording, record
from comparison.replay import Replay
from comparison.rounding import rounded_draft
from comparison.same_contexts import measure_same_contexts
from comparison.texts import acceptance_tables, observe_beside
from loaders.checkpoint.model_files import read_checkpoint
from loaders.checkpoint.read_spec import read_spec
from loaders.hub.names import directory_name
from offload_runtime.errors import UsageError
from offload_runtime.generation.fetching import fetched
from offload_runtime.options.arguments import model_options

Note = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """setup: what all cells have in common. workload: of every setting. measure: the cells that are missing."""

    setup: dict[str, Any]
    workload: Callable[[Setting], Workload]
    measure: Callable[[Sequence[Cell]], Iterator[Measured]]


def pair_source(arguments: argparse.Namespace, kinds: list[Setting], note: Note) -> Source:
    """The models themselves. Raises an OffloadError."""
    pair = _pair(arguments)
    draft = pair.options.draft
    setup = {
        "model": directory_name(pair.options.model),
        "draft": directory_name(draft) if isinstance(draft, Path) and arguments.draft_bits is None else None,
        "draft_bits": arguments.draft_bits,
        "dtype": pair.options.dtype,
        "prompts": digest(pair.prompts),
        "reply_tokens": arguments.reply_tokens,
        "seed": arguments.seed,
    }
    workload = _workload(arguments, [arguments.reply_tokens] * len(pair.prompts))
    if arguments.same_contexts:
        measure = partial(_measure_same_contexts, arguments, pair, workload, note)
    else:
        measure = partial(_measure_pair, arguments, pair, kinds, workload, note)
    return Source(setup, lambda setting: workload, measure)


def recorded_source(arguments: argparse.Namespace, note: Note) -> Source:
    """Recorded laws. Raises UsageError."""
    recording = Recording.open(arguments.from_recorded)
    note("recorded laws: an approximation, in which the laws of a node do not depend on the tokens of its branch")
    setup = {**recording.identity(), "seed": arguments.seed}

    def workload(setting: Setting) -> Workload:
        return _workload(arguments, recording.lengths(setting))

    def measure(wanted: Sequence[Cell]) -> Iterator[Measured]:
        for setting in dict.fromkeys(cell.setting for cell in wanted):
            replay = Replay.of(recording.tape(setting), setting, arguments.seed)
            for cell in wanted:
                if cell.setting == setting:
                    yield measure_cell(cell, replay.steps(cell), workload(setting))

    return Source(setup, workload, measure)


def record_pair(arguments: argparse.Namespace, kinds: list[Setting]) -> int:
    """Write the file that --record names; returns the number of places in it."""
    with _with_draft(arguments, _pair(arguments)) as pair:
        return record(pair, kinds, arguments.contexts, arguments.seed, arguments.record)


def _pair(arguments: argparse.Namespace) -> Pair:
    """The pair as given; with --draft-bits its draft does not exist yet. Raises UsageError where there is no draft."""
    options = model_options(arguments)
    if not isinstance(options.draft, Path):  # "auto": a comparison takes the draft it is given
        options = replace(options, draft=None)
    needs_draft = arguments.record is not None or set(arguments.methods) != {"plain"}
    if needs_draft and options.draft is None and arguments.draft_bits is None:
        raise UsageError("nothing to compare without a draft: --draft DIR, or --draft-bits 4 for the target's own")
    options = fetched(options, arguments.yes, arguments.quiet)
    vocab_size = read_spec(options.model, "auto", read_checkpoint(options.model)).vocab_size
    prompts = encoded_prompts(arguments.prompts, options.model, vocab_size, arguments.raw)
    return Pair(options, prompts, arguments.reply_tokens)


@contextmanager
def _with_draft(arguments: argparse.Namespace, pair: Pair) -> Iterator[Pair]:
    """The pair with the draft that --draft-bits asks for, for the block."""
    if arguments.draft_bits is None:
        yield pair
        return
    with rounded_draft(pair.options.model, arguments.draft_bits) as directory:
        yield replace(pair, options=replace(pair.options, draft=directory))


def _workload(arguments: argparse.Namespace, reply_tokens: list[int]) -> Workload:
    return Workload(reply_tokens, arguments.passes, arguments.replies, arguments.seed)


def _measure_pair(
    arguments: argparse.Namespace,
    pair: Pair,
    kinds: list[Setting],
    workload: Workload,
    note: Note,
    wanted: Sequence[Cell],
) -> Iterator[Measured]:
    if not wanted:
        return
    with _with_draft(arguments, pair) as complete:
        if arguments.draft_bits is not None:
            note(f"measuring acceptance of the target's own draft at {arguments.contexts} places per sampling")
            observe_beside(complete, kinds, arguments.contexts, arguments.seed)
        for (method, size, depth), group in groupby(wanted, load_key):
            with complete.runtime(method, size, depth) as runtime:
                for cell in group:
                    steps = complete.steps(runtime, cell.setting, METHODS[method].repeatable)
                    yield measure_cell(cell, steps, workload)


def _measure_same_contexts(
    arguments: argparse.Namespace, pair: Pair, workload: Workload, note: Note, wanted: Sequence[Cell]
) -> Iterator[Measured]:
    if not wanted:
        return
    with _with_draft(arguments, pair) as complete:
        kinds = list(dict.fromkeys(cell.setting for cell in wanted))
        tables = acceptance_tables(complete, kinds, arguments.contexts, arguments.seed, note)
        yield from measure_same_contexts(complete, tables, workload, wanted)
