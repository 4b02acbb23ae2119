"""Command line options. Imports no torch."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from offload_runtime import __version__
from offload_runtime.options.fields import add_options, values_of
from offload_runtime.options.help_text import HelpFormatter
from offload_runtime.options.readers import utf8_text
from offload_runtime.options.run_options import DEMO_TARGET, Options, RunOptions, resolved
from offload_runtime.options.sampling_options import add_sampling_options
from offload_runtime.start import PROJECT, command_name

THINKING = ("show", "hide", "off")


def model_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser for a command that runs a model, with the model options; keeps the lines of its texts."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [OPTIONS]",
        description=description,
        epilog=epilog,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROJECT} {__version__}")
    add_model_options(parser)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on what to load and where; `model_options` reads them back."""
    add_options(parser.add_argument_group("model"), RunOptions, "model")
    group = parser.add_argument_group("downloads", "Models by name go to the Hugging Face cache; HF_HOME moves it.")
    add_options(group, RunOptions, "downloads")
    group.add_argument("--yes", action="store_true", help="never ask before a large step, such as more than 5 GB")


def model_options(arguments: argparse.Namespace) -> Options:
    """The model options in parsed arguments, with the bundled pair filled in."""
    given, more = values_of(RunOptions, arguments), values_of(Options, arguments)
    model = DEMO_TARGET if arguments.model is None else arguments.model
    options = resolved(RunOptions(**{**given, "model": model}))
    return replace(options, **{name: value for name, value in more.items() if name not in given})


CHAT_EXAMPLES = """examples:
  %(prog)s
      chat with the demonstration pair
  %(prog)s -m DIR -d DRAFT_DIR
      chat with a model, sped up by a draft
  %(prog)s -m org/name:Q4_K_M
      chat with a GGUF file of a repository
  %(prog)s -m DIR --plan
      what would lie where, and how fast it may be
  %(prog)s -m DIR --plan --gpu rtx-4090
      the same for a card that is not here
  %(prog)s -m org/name --plan
      the same for a model that is not downloaded
  %(prog)s -m DIR -p "Why is the sky blue?" --json
      one reply, as JSON
  cat FILE | %(prog)s -m DIR -p "Summarize:"
      a reply to a prompt and a text below it

exit codes: 0 ok, 1 failure of this program, 2 wrong use,
3 model files missing or damaged, 4 does not fit, 5 draft does not match,
130 interrupted"""


def chat_parser() -> argparse.ArgumentParser:
    """The parser of the chat, `sequoia-chat` as an installed command."""
    description = "Chat with a language model that is larger than the device's memory."
    parser = model_parser(command_name("sequoia-chat", "offload_runtime.chat"), description, CHAT_EXAMPLES)
    add_sampling_options(parser)
    group = parser.add_argument_group("prompt", "Without one, and without input piped in, a chat begins.")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        *("--prompt", "-p"), metavar="TEXT", type=utf8_text, help="answer this, and what is piped in below it, and exit"
    )
    source.add_argument(
        *("--file", "-f"), metavar="FILE", type=Path, help="answer what this UTF-8 file says (-: the input) and exit"
    )
    group.add_argument("--system", metavar="TEXT", type=utf8_text, help="system message before the first prompt")
    group.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    add_options(group, RunOptions, "prompt")
    group.add_argument(
        "--thinking",
        choices=THINKING,
        default="show",
        help="what a model thinks before it answers; show: dimmed; hide; off: ask it not to (default: show)",
    )
    group = parser.add_argument_group("chat")
    group.add_argument(
        "--context-overflow",
        choices=("stop", "drop"),
        default="stop",
        help="where the context is full: stop and say so, or drop the oldest turns (default: stop)",
    )
    group.add_argument("--no-history", action="store_true", help="keep neither what is typed nor the last conversation")
    group = add_plan_options(parser)
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text; needs a prompt")
    group.add_argument("--quiet", action="store_true", help="print the reply and errors only")
    return parser


def add_plan_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the group "output" with the options that ask for the plan alone; `check_plan_options` looks at them."""
    group = parser.add_argument_group("output")
    group.add_argument("--plan", action="store_true", help="print the plan and exit, without loading anything")
    add_options(group, Options, "output")
    return group


def check_plan_options(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Exit with code 2 and a message where a card is named and no plan asked for."""
    if parsed.gpu is not None and not parsed.plan:
        parser.error("argument --gpu: it plans for a card that need not be here; add --plan")


def parse_chat_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a chat's command line; exits with code 2 and a message if it is wrong."""
    parser = chat_parser()
    parsed = parser.parse_args(arguments)
    check_plan_options(parser, parsed)
    if parsed.raw and (parsed.chat_template is not None or parsed.template_arguments):
        name = "--template-arg" if parsed.template_arguments else "--chat-template"
        parser.error(f"argument {name}: --raw leaves the chat template out")
    if parsed.raw and parsed.system is not None:
        parser.error("argument --system: --raw has no chat template that a system message could go into")
    return parsed
