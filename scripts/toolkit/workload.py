"""What the benchmarks share: which model runs, given or made up, on which prompts, and how files are read."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from offload_runtime.options.arguments import model_parser
from offload_runtime.options.readers import whole_number
from offload_runtime.options.run_options import Options
from offload_runtime.options.sampling_options import add_sampling_options
from toolkit.options import add_prompt_options, add_quiet, add_shape_options, adder
from toolkit.output import Note

if TYPE_CHECKING:
    from loaders.checkpoint.spec import ModelSpec
    from offload_runtime.text.prompt import Prompt

NEW_TOKENS, SHAPE_NEW_TOKENS = 64, 8
CONTEXT_GRAIN = 64


def benchmark_parser(name: str, description: str, epilog: str) -> tuple[argparse.ArgumentParser, Callable[..., Any]]:
    """A parser with the options that both benchmarks have, and what adds more of them."""
    parser = model_parser(f"python scripts/{name}.py", description, epilog)
    add_sampling_options(parser)
    add_shape_options(parser, "bfloat16")
    add = adder(parser.add_argument_group("measurement"))
    layers = "write N layers and let the others repeat them: less disk and host memory, the same bytes on the link"
    add("--distinct-layers", metavar="N", type=whole_number(1), help=layers)
    add_prompt_options(add)
    add("--prompt-tokens", default=64, help="tokens of a random prompt")
    tokens = f"tokens per text (default: {NEW_TOKENS}; {SHAPE_NEW_TOKENS} with --shape)"
    add("--new-tokens", dest="max_new_tokens", metavar="N", type=whole_number(2), help=tokens)
    add("--repeats", default=3, help="timed runs")
    add("--cold", action="store_true", help="read weights past the page cache, also where they would fit into it")
    add_quiet(add)
    return parser, add


def check_shape(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> argparse.Namespace:
    """Fill in the number of tokens; exits with code 2 where random weights and other options contradict each other."""
    if parsed.shape is None and parsed.distinct_layers is not None:
        parser.error("argument --distinct-layers: it goes with --shape")
    if parsed.shape is not None and parsed.model is not None:
        parser.error("argument --shape: random weights or --model, not both")
    if parsed.shape is not None and parsed.draft not in ("auto", "none"):
        parser.error("argument --draft: a trained draft cannot guess random weights")
    parsed.max_new_tokens = parsed.max_new_tokens or (NEW_TOKENS if parsed.shape is None else SHAPE_NEW_TOKENS)
    return parsed


@contextmanager
def benchmarked(arguments: argparse.Namespace, note: Note) -> Iterator[Options]:
    """What to load, for the block: the models that were asked for, or random weights in a context no longer than the
    replies need."""
    from loaders.checkpoint.random_weights import SHAPES
    from offload_runtime.loading.fetching import fetched
    from offload_runtime.options.arguments import model_options
    from toolkit.checkpoints import random_model

    options = model_options(arguments)
    if arguments.cold or arguments.distinct_layers:  # layers that repeat on disk soon lie in the page cache
        options = replace(options, io="direct")
    if arguments.shape is None:
        yield fetched(options, arguments.yes, arguments.quiet)
        return
    shape, distinct, seed = arguments.shape, arguments.distinct_layers, arguments.seed or 0
    with random_model(shape, arguments.shape_dtype, arguments.work_dir, note, distinct, seed) as model:
        needed = -(-(arguments.prompt_tokens + arguments.max_new_tokens) // CONTEXT_GRAIN) * CONTEXT_GRAIN
        yield replace(
            options,
            model=model,
            draft=None,
            tree="none",
            share_layers=distinct is not None and distinct < SHAPES[shape]["num_hidden_layers"],
            context_length=options.context_length or needed,
        )


def benchmark_prompts(arguments: argparse.Namespace, spec: "ModelSpec", count: int = 2) -> "list[Prompt]":
    """The prompts of `--prompts`, or others for this model."""
    from toolkit.prompts import prompts_for

    file, raw, tokens, seed = arguments.prompts, arguments.raw, arguments.prompt_tokens, arguments.seed or 0
    return prompts_for(spec.directory, spec.vocab_size, file, raw, tokens, seed, count)
