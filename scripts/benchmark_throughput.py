"""Tokens per second of several texts that share the passes of one model, beside those of one text alone.

    python scripts/benchmark_throughput.py --help

The model is loaded once for one text, and once for the most texts; within the second, 1, 2, 4, … texts are written side
by side. Measured from the pass in which all of them are being written to the one in which the first of them has its
tokens (end tokens are not written before), so that neither prompts nor a shrinking number of texts count.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.options import add_count, add_prompt_options, add_quiet, add_shape_options, adder, listed
from toolkit.output import Note, progress, say, table_head, table_row

from offload_runtime.loading.fetching import fetched
from offload_runtime.options.arguments import model_options, model_parser
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import whole_number
from offload_runtime.options.run_options import Options
from offload_runtime.options.sampling_options import add_sampling_options, sampling_options

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    from offload_runtime import OffloadRuntime
    from offload_runtime.text.prompt import Prompt

DESCRIPTION = "Tokens per second of several texts that share passes, beside those of one text alone, as a table."
EXAMPLES = """examples:
  python scripts/benchmark_throughput.py                               the demonstration pair
  python scripts/benchmark_throughput.py -m DIR -d DRAFT_DIR --texts 1,4,16
  python scripts/benchmark_throughput.py --shape llama-3.2-1b --shape-dtype float32 --device-memory 2GiB"""
NEW_TOKENS, SHAPE_NEW_TOKENS = 64, 8
TITLES = ("planned for", "texts", "tokens/s in all", "each", "tokens/pass each", "s/pass", "GB/pass", "× one text")


@dataclass(frozen=True)
class Run:
    """A stretch of passes that all texts shared. tokens: of all texts; nbytes: that crossed the link."""

    passes: int
    tokens: int
    seconds: float
    nbytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _benchmark(_parsed(arguments)))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = model_parser("python scripts/benchmark_throughput.py", DESCRIPTION, EXAMPLES)
    add_sampling_options(parser)
    add_shape_options(parser, "bfloat16")
    group = parser.add_argument_group("measurement")
    add_prompt_options(group)
    add = adder(group)
    numbers = listed(whole_number(1))
    add("--texts", metavar="N,N", type=numbers, default=(1, 2, 4, 8), help="how many texts to write side by side")
    add_count(add, "--prompt-tokens", 64, 1, "tokens of a random prompt")
    add_count(add, "--repeats", 3, 1, "timed runs of each number of texts")
    tokens = f"tokens per text (default: {NEW_TOKENS}; {SHAPE_NEW_TOKENS} with --shape)"
    add("--new-tokens", dest="max_new_tokens", metavar="N", type=whole_number(2), help=tokens)
    cold = "read weights past the page cache, also where they would fit into it"
    group.add_argument("--cold", action="store_true", help=cold)
    add_quiet(group)
    return parser.parse_args(arguments)


def _benchmark(arguments: argparse.Namespace) -> int:
    note = progress(arguments.quiet)
    with ExitStack() as resources:
        options = model_options(arguments)
        if arguments.shape is not None:
            from toolkit.checkpoints import random_models

            random = resources.enter_context(random_models(arguments, note, None, None))
            context = arguments.prompt_tokens + (arguments.max_new_tokens or SHAPE_NEW_TOKENS)
            options = replace(options, model=random.target, draft=None, tree="none", context_length=context)
        options = fetched(replace(options, io="direct") if arguments.cold else options, arguments.yes, arguments.quiet)
        say(table_head(TITLES))
        one = None
        for planned, texts in ((1, (1,)), (max(arguments.texts), arguments.texts)):
            for count, run in _measured(replace(options, parallel=planned), texts, arguments, note):
                one = one or run.tokens / run.seconds
                say([_row(planned, count, run, one)])
    return 0


def _measured(
    options: Options, texts: Sequence[int], arguments: argparse.Namespace, note: Note
) -> Iterator[tuple[int, Run]]:
    """The median run, by tokens per second, of each number of texts."""
    from toolkit.prompts import prompts_for

    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.planning.planning import prepare

    preparation = prepare(options)
    spec = preparation.target.spec
    prompts = prompts_for(
        spec.directory, spec.vocab_size, arguments.prompts, arguments.raw, arguments.prompt_tokens, count=max(texts) + 1
    )
    sampling = sampling_options(arguments).as_arguments()
    default = NEW_TOKENS if arguments.shape is None else SHAPE_NEW_TOKENS
    sampling["max_new_tokens"] = sampling["max_new_tokens"] or default
    sampling["min_new_tokens"] = sampling["max_new_tokens"]  # a text that ends early would cut the run to a pass or two
    with OffloadRuntime(preparation) as runtime:
        _shared(runtime, prompts[:1], sampling)  # warms up
        for count in texts:
            runs = []
            for repeat in range(arguments.repeats):
                asked = list(islice(cycle(prompts), repeat, repeat + count))
                runs.append(_shared(runtime, asked, sampling))
                note(f"{count} texts: {runs[-1].tokens / runs[-1].seconds:.2f} tokens/s in {runs[-1].passes} passes")
            speeds = [run.tokens / run.seconds for run in runs]
            yield count, runs[speeds.index(sorted(speeds)[(len(speeds) - 1) // 2])]


def _shared(runtime: "OffloadRuntime", prompts: "Sequence[Prompt]", sampling: dict[str, Any]) -> Run:
    """Write a text to each prompt; the run begins once all are being written, and ends with the first text."""
    from offload_runtime import GenerationRequest

    target = runtime._models.target.model
    passes = tokens = 0
    started, streamed = time.perf_counter(), target.streamed_total
    with runtime.shared_passes() as shared:
        texts = [shared.add(GenerationRequest(prompt, sampling)) for prompt in prompts]
        while not any(text.done for text in texts):
            writing = all(text.reply.token_ids for text in texts)
            if not writing:
                passes = tokens = 0
                started, streamed = time.perf_counter(), target.streamed_total
            steps = shared.step()
            passes += writing
            tokens += sum(len(step.token_ids) for _, step in steps) if writing else 0
    return Run(passes, tokens, time.perf_counter() - started, target.streamed_total - streamed)


def _row(planned: int, texts: int, run: Run, one: float) -> str:
    speed, passes = run.tokens / run.seconds, max(1, run.passes)
    cells = (
        f"{planned} text{'s' * (planned > 1)}",
        str(texts),
        f"{speed:.2f}",
        f"{speed / texts:.2f}",
        f"{run.tokens / passes / texts:.2f}",
        f"{run.seconds / passes:.3f}",
        f"{run.nbytes / passes / 1e9:.3f}",
        f"{speed / one:.2f}",
    )
    return table_row(cells)


if __name__ == "__main__":
    sys.exit(main())
