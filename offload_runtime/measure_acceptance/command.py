"""The command: measures, prints and keeps acceptance."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.checkpoint.low_bit_copy import COPIES
from loaders.hub.names import directory_name
from offload_runtime.errors import UsageError
from offload_runtime.loading.fetching import fetched
from offload_runtime.measure_acceptance.options import parse_arguments, settings
from offload_runtime.measure_acceptance.written import WrittenReplies
from offload_runtime.options.arguments import model_options
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import AUTO, DEMO_TARGET, MTP, Options
from offload_runtime.planning.planning import Preparation, prepare
from offload_runtime.speculation.acceptance_store import (
    ACCEPTANCE_FILE,
    Drafter,
    PairAcceptance,
    cache_file,
    save,
    write,
)

# Whatever needs torch is imported where it is used, so that `--help` and usage errors answer at once.
if TYPE_CHECKING:
    from offload_runtime.measure_acceptance.measure import Measured


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    options = model_options(arguments)
    if options.draft in (None, AUTO) or options.tree == "none":
        raise UsageError(
            "acceptance is that of a draft: name one with --draft DIR, the model's own head with mtp, or a copy of the "
            "model with self:4"
        )
    options = fetched(options, arguments.yes, arguments.quiet)
    draft = _drafter(options)
    file = _file(arguments.output, draft)
    cached = cache_file(options.model, draft)
    replies = WrittenReplies(cached and cached.with_suffix(".replies"))
    preparation = prepare(options)
    if isinstance(draft, int) and not preparation.plan.slots:
        raise UsageError(
            f"--draft {options.draft}: all layers fit into memory here, and those draft as they are; a copy is made of "
            "layers that stream.\n  --device-memory SIZE   makes them"
        )
    measured = _measure(arguments, preparation, replies)
    pair = PairAcceptance(
        target=directory_name(options.model),
        draft=_name(options, draft),
        measurements={one.setting: one.measurement for one in measured},
    )
    # Printed first: a long measurement must not be lost if it cannot be written.
    _print(measured, pair, arguments.json)
    kept_in = _keep(pair, file, options.model, draft)
    replies.remove()
    if not arguments.quiet:
        print(f"kept in {kept_in}", file=sys.stderr)
    return 0


def _drafter(options: Options) -> Drafter:
    if options.draft in COPIES:
        return COPIES[str(options.draft)]
    draft = options.model if options.draft == MTP else options.draft  # its own head lies in the model's files
    assert isinstance(draft, Path)
    return draft


def _name(options: Options, draft: Drafter) -> str:
    """The draft's, for people."""
    if isinstance(draft, int):
        return f"a copy of {directory_name(options.model)} in {draft} bits"
    return f"the head of {directory_name(draft)}" if options.draft == MTP else directory_name(draft)


def _file(output: str, draft: Drafter) -> Path | None:
    """The file to write; None for the cache. Raises UsageError if it cannot be written."""
    if output == "cache":
        return None
    if isinstance(draft, int):
        raise UsageError(
            f"--output {output}: a copy has no files that its acceptance could lie with; it is kept in the cache"
        )
    file = draft / ACCEPTANCE_FILE if output == "beside" else Path(output)
    if not os.access(file.parent, os.W_OK):
        raise UsageError(f"--output {output}: {file.parent} is no directory that can be written to")
    return file


def _measure(arguments: argparse.Namespace, preparation: Preparation, replies: WrittenReplies) -> "list[Measured]":
    from rich.console import Console

    from offload_runtime.measure_acceptance.measure import Workload, measure
    from offload_runtime.measure_acceptance.prompts import prompts_for
    from offload_runtime.options.progress import LoadingBar

    def note(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    spec, seed = preparation.target.spec, arguments.seed
    demonstration = spec.directory.resolve() == DEMO_TARGET.resolve()
    prompts = prompts_for(spec.directory, spec.vocab_size, arguments.prompts, demonstration, seed)
    workload = Workload(prompts, arguments.max_new_tokens, arguments.positions, seed, arguments.quick)
    if len(replies):
        note(f"{len(replies)} replies of a start that was interrupted are used")
    with LoadingBar(Console(stderr=True), arguments.quiet) as loading:
        return measure(preparation, workload, settings(arguments), loading, note, replies)


def _print(measured: "Sequence[Measured]", pair: PairAcceptance, as_json: bool) -> None:
    from offload_runtime.measure_acceptance.report import figures, lines

    if as_json:
        print(json.dumps({"target": pair.target, "draft": pair.draft, "settings": figures(measured)}))
        return
    print(f"{pair.draft} drafting for {pair.target}\n")
    for line in lines(measured):
        print(line)


def _keep(pair: PairAcceptance, file: Path | None, target: Path, draft: Drafter) -> Path:
    """Write the tables and return their path. Raises UsageError if that fails."""
    if file is not None:
        try:
            write(file, pair, target)
        except OSError as error:
            raise UsageError(f"{file}: cannot be written ({error.strerror})") from error
        return file
    cached = cache_file(target, draft)
    if cached is None or not save(pair, target, draft):
        raise UsageError(f"{cached or 'the cache'}: cannot be written; set SEQUOIA_OFFLOAD_CACHE to another directory")
    return cached
