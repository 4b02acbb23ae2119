"""The command line of the benchmark. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from toolkit.options import add_count, add_prompt_options, add_quiet, add_shape_options, adder

from offload_runtime.options.arguments import model_parser
from offload_runtime.options.readers import whole_number
from offload_runtime.options.sampling_options import add_sampling_options

DESCRIPTION = """\
Plain streamed decoding and tree decoding, one after the other, on the same prompts and within the same limits.
Prints a Markdown table whose every term is explained below it, and JSON lines on request. Needs no model files: without
--model the bundled demonstration pair runs, and --shape makes random weights in the shape of a known model."""

EXAMPLES = """examples:
  python scripts/benchmark_latency.py                                  the demonstration pair
  python scripts/benchmark_latency.py -m DIR -d DRAFT_DIR              a model and its draft
  python scripts/benchmark_latency.py -m DIR --cold                    weights read from the disk, never from its cache
  python scripts/benchmark_latency.py --shape tiny                     a model of a few kilobytes, in seconds
  python scripts/benchmark_latency.py --shape llama-3.2-1b --shape-dtype float32 --cold --device-memory 2GiB
  python scripts/benchmark_latency.py --shape llama-2-70b --json -     random weights of 70B; JSON lines on stdout

exit codes: 0 ok, 1 outputs differ in float32, 2 wrong use, 3 model files missing or damaged, 4 does not fit,
5 draft does not match, 130 interrupted"""

NEW_TOKENS, SHAPE_NEW_TOKENS = 64, 8


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message where it is wrong."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.shape is None:
        for name in ("draft_shape", "distinct_layers"):
            if getattr(parsed, name) is not None:
                parser.error(f"argument --{name.replace('_', '-')}: it goes with --shape")
    elif parsed.model is not None:
        parser.error("argument --shape: random weights or --model, not both")
    elif parsed.draft not in ("auto", "none"):
        parser.error("argument --draft: a trained draft cannot guess random weights; --draft-shape makes one up")
    if parsed.max_new_tokens is None:
        parsed.max_new_tokens = NEW_TOKENS if parsed.shape is None else SHAPE_NEW_TOKENS
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = model_parser("python scripts/benchmark_latency.py", DESCRIPTION, EXAMPLES)
    add_sampling_options(parser)
    add = adder(add_shape_options(parser, "bfloat16"))
    add("--draft-shape", metavar="NAME|FILE", help="a draft of this shape; its guesses are almost always wrong")
    distinct = (
        "write N layers and let the others repeat them: less disk and host memory, the same bytes on the link "
        "(default: as many as half the free disk holds, 16 GB at most)"
    )
    add("--distinct-layers", metavar="N", type=whole_number(1), help=distinct)
    group = parser.add_argument_group("measurement")
    add = adder(group)
    add_prompt_options(group)
    add_count(add, "--prompt-tokens", 64, 1, "tokens of a random prompt")
    tokens = f"tokens per reply (default: {NEW_TOKENS}; {SHAPE_NEW_TOKENS} with --shape)"
    add("--new-tokens", dest="max_new_tokens", metavar="N", type=whole_number(2), help=tokens)
    add_count(add, "--repeats", 3, 1, "timed replies to each prompt")
    add_count(add, "--warmup", 1, 0, "replies that are not counted")
    cold = "read weights past the page cache, also where they would fit into it"
    group.add_argument("--cold", action="store_true", help=cold)
    group = parser.add_argument_group("output")
    json_lines = "write JSON lines; with - to stdout, and the table to stderr"
    group.add_argument("--json", metavar="FILE|-", help=json_lines)
    timeline = "draw when link, device, drafting and verification work in a few steps of the last mode, as SVG"
    group.add_argument("--timeline", metavar="FILE", type=Path, help=timeline)
    add_quiet(group)
    parser.set_defaults(temperature=0.0)  # greedy: both outputs must be the same
    return parser
