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
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.options import listed
from toolkit.output import Column, Note, Row, progress, table_of
from toolkit.workload import benchmark_parser, benchmark_prompts, benchmarked, check_shape

from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import whole_number
from offload_runtime.options.run_options import Options
from offload_runtime.options.sampling_options import sampling_options

if TYPE_CHECKING:  # what needs torch is imported where it is used: `--help` answers before that
    from offload_runtime import OffloadRuntime
    from offload_runtime.text.prompt import Prompt

DESCRIPTION = "Tokens per second of several texts that share passes, beside those of one text alone, as a table."
EXAMPLES = """examples:
  python scripts/benchmark_throughput.py                               the demonstration pair
  python scripts/benchmark_throughput.py -m DIR -d DRAFT_DIR --texts 1,4,16
  python scripts/benchmark_throughput.py --shape llama-3.2-1b --shape-dtype float32 --device-memory 2GiB"""
COLUMNS = (
    Column("planned for", "planned", lambda texts: f"{texts} text{'s' * (texts > 1)}"),
    Column("texts", "texts"),
    Column("tokens/s in all", "speed", ".2f"),
    Column("each", lambda row: row["speed"] / row["texts"], ".2f"),
    Column("tokens/pass each", lambda row: row["tokens"] / row["passes"] / row["texts"], ".2f"),
    Column("s/pass", lambda row: row["seconds"] / row["passes"], ".3f"),
    Column("GB/pass", lambda row: row["streamed_bytes"] / row["passes"] / 1e9, ".3f"),
    Column("× one text", lambda row: row["speed"] / row["one"], ".2f"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _benchmark(_parsed(arguments)))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser, add = benchmark_parser("benchmark_throughput", DESCRIPTION, EXAMPLES)
    numbers = listed(whole_number(1))
    add("--texts", metavar="N,N", type=numbers, default=(1, 2, 4, 8), help="how many texts to write side by side")
    return check_shape(parser, parser.parse_args(arguments))


def _benchmark(arguments: argparse.Namespace) -> int:
    with benchmarked(arguments, progress(arguments.quiet)) as options:
        rows: list[dict[str, Any]] = []
        for planned, texts in ((1, (1,)), (max(arguments.texts), arguments.texts)):
            for row in _measured(replace(options, parallel=planned), texts, arguments, progress(arguments.quiet)):
                rows.append({"planned": planned, "one": rows[0]["speed"] if rows else row["speed"], **row})
        print("\n".join(table_of(COLUMNS, rows)))
    return 0


def _measured(options: Options, texts: Sequence[int], arguments: argparse.Namespace, note: Note) -> Iterator[Row]:
    """The median run, by tokens per second, of each number of texts."""
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.planning.planning import prepare

    preparation = prepare(options)
    prompts = benchmark_prompts(arguments, preparation.target.spec, count=max(texts) + 1)
    sampling = sampling_options(arguments).as_arguments()
    sampling["min_new_tokens"] = sampling["max_new_tokens"]  # a text that ends early would cut the run to a pass or two
    with OffloadRuntime(preparation) as runtime:
        _shared(runtime, prompts[:1], sampling)  # warms up
        for count in texts:
            runs = []
            for repeat in range(arguments.repeats):
                runs.append(_shared(runtime, list(islice(cycle(prompts), repeat, repeat + count)), sampling))
                note(f"{count} texts: {runs[-1]['speed']:.2f} tokens/s in {runs[-1]['passes']} passes")
            yield sorted(runs, key=lambda run: run["speed"])[(len(runs) - 1) // 2]


def _shared(runtime: "OffloadRuntime", prompts: "Sequence[Prompt]", sampling: dict[str, Any]) -> dict[str, Any]:
    """Write a text to each prompt; the run begins once all are being written, and ends with the first text."""
    from offload_runtime import GenerationRequest

    target, passes, tokens = runtime.target_model, 0, 0
    started, streamed = time.perf_counter(), target.streamed_total
    with runtime.shared_passes() as shared:
        texts = [shared.add(GenerationRequest(prompt, sampling)) for prompt in prompts]
        while not any(text.done for text in texts):
            writing = all(text.reply.token_ids for text in texts)
            if not writing:
                started, streamed = time.perf_counter(), target.streamed_total
            steps = shared.step()
            passes += writing
            tokens += sum(len(step.token_ids) for _, step in steps) if writing else 0
    seconds = time.perf_counter() - started
    figures = {"texts": len(texts), "speed": tokens / seconds, "tokens": tokens, "seconds": seconds}
    return {**figures, "passes": max(1, passes), "streamed_bytes": target.streamed_total - streamed}


if __name__ == "__main__":
    sys.exit(main())
