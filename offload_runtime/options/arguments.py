"""Command line options. Imports no torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from loaders.adapters.locate import with_adapter
from loaders.checkpoint.rope_scaling import RopeScaling
from loaders.quantize.recipe import BITS
from offload_runtime import __version__
from offload_runtime.options.help_text import HelpFormatter
from offload_runtime.options.readers import device, template_argument, utf8_text, whole_number
from offload_runtime.options.run_options import DEMO_TARGET, DTYPES, RULES, TREES, Options, resolve_draft, resolve_model
from offload_runtime.options.sampling_options import add_sampling_options
from offload_runtime.start import PROJECT, command_name
from scheduler.sizes import parse_size

THINKING = ("show", "hide", "off")


def size(text: str) -> int:
    """A reader of sizes such as 20GiB."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rope_scaling(text: str) -> RopeScaling:
    """A reader of scaled rotations such as yarn:4."""
    try:
        return RopeScaling.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count_or_auto(text: str) -> int | None:
    """A reader of an integer of at least 1, or of "auto", which gives None."""
    return None if text == "auto" else whole_number(1)(text)


def model_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of a command that runs a model: with the model options, and with its texts shown as they stand."""
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
    """Options that say what to load and where it may lie; `model_options` reads them back."""
    add = parser.add_argument_group("model").add_argument
    add(
        *("--model", "-m"),
        metavar="MODEL",
        help="directory of the model, a GGUF file, or a name on the Hugging Face hub: org/name or org/name@revision, "
        "and org/name:Q4_K_M for one of its GGUF files (default: a bundled demonstration)",
    )
    add(
        *("--draft", "-d"),
        metavar="MODEL",
        default="auto",
        help="a small model with the same tokens, in the same way (org/name:Q8_0); none: plain decoding; "
        "auto: a known draft that is in the hub's cache, else what the text said before (default: auto)",
    )
    add(
        "--adapter",
        metavar="DIR",
        help="a LoRA adapter, merged into the model while it is read; none: leave out one that lies beside the model",
    )
    add(
        "--device",
        metavar="DEVICE",
        type=device,
        default="auto",
        help="where to compute: auto, cpu, cuda, or cuda:1 for the second GPU (default: auto)",
    )
    add("--device-memory", metavar="SIZE", type=size, help="use at most this much of the device's memory: 10GiB")
    add("--host-memory", metavar="SIZE", type=size, help="use at most this much of the host's memory: 32GiB")
    add("--dtype", choices=DTYPES, default="auto", help="type to compute in (default: auto)")
    add(
        "--quantize",
        choices=BITS,
        help="pack the model's weights to 8 or 4 bits, once: the first start writes them to disk, later ones find them",
    )
    add("--quantized-directory", metavar="DIR", type=Path, help="where packed weights are kept (default: the cache)")
    add("--context-length", metavar="N", type=whole_number(1), help="most tokens of prompts and replies together")
    add(
        "--rope-scaling",
        metavar="KIND:FACTOR",
        type=rope_scaling,
        help="extend the context: yarn:4, linear:2, dynamic:2; yarn:4:32768 says what the model was made for; none; or "
        "rope_scaling as JSON (default: what the config says)",
    )
    add(
        "--tree",
        choices=TREES,
        default="auto",
        help="what the draft proposes; auto: what is fastest here; sequoia: the best static tree; adaptive: grown for "
        "each context; chain, chains, specinfer, topk: for comparison; none: plain decoding (default: auto)",
    )
    add(
        "--verification",
        choices=RULES,
        default="auto",
        help="rule that accepts drafts when sampling; all are exact; auto: the tree's own (default: auto)",
    )
    add("--tree-size", metavar="N", type=count_or_auto, help="most tokens in a tree (default: auto)")
    add("--tree-depth", metavar="N", type=count_or_auto, help="most levels of a tree (default: auto)")
    group = parser.add_argument_group("downloads", "Models by name go to the Hugging Face cache; HF_HOME moves it.")
    group.add_argument("--offline", action="store_true", help="never use the network: what the cache has is used")
    group.add_argument("--yes", action="store_true", help="never ask before a large step, such as more than 5 GB")


def model_options(arguments: argparse.Namespace) -> Options:
    """The model options in parsed arguments, with the bundled pair filled in."""
    model, adapter = with_adapter(
        DEMO_TARGET if arguments.model is None else resolve_model(arguments.model), arguments.adapter
    )
    names = (
        *("device", "device_memory", "host_memory", "dtype", "context_length", "offline"),
        *("tree", "verification", "tree_size", "tree_depth"),
        *("quantize", "quantized_directory", "rope_scaling"),
    )
    values = {name: getattr(arguments, name) for name in names}
    values |= {name: getattr(arguments, name) for name in ("gpu", "chat_template") if hasattr(arguments, name)}
    variables = dict(getattr(arguments, "template_arg", ()))
    draft = resolve_draft(model, arguments.draft)
    return Options(model=model, draft=draft, adapter=adapter, template_arguments=variables, **values)


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
    group.add_argument("--chat-template", metavar="FILE", type=Path, help="a Jinja template in place of the model's")
    group.add_argument(
        "--template-arg",
        metavar="KEY=JSON",
        type=template_argument,
        action="append",
        default=[],
        help="a variable of the chat template: enable_thinking=false, reasoning_effort=high; may be repeated",
    )
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
    group = parser.add_argument_group("output")
    group.add_argument("--plan", action="store_true", help="print the plan and exit, without loading anything")
    group.add_argument(
        "--gpu",
        metavar="NAME",
        help="with --plan: plan for this card instead of what is here (rtx-4090, l40, ...; all are listed where a name "
        "is unknown); --host-memory is then the memory beside it",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text; needs a prompt")
    group.add_argument("--quiet", action="store_true", help="print the reply and errors only")
    return parser


def parse_chat_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a chat's command line; exits with code 2 and a message where it is wrong."""
    parser = chat_parser()
    parsed = parser.parse_args(arguments)
    if parsed.gpu is not None and not parsed.plan:
        parser.error("argument --gpu: it plans for a card that need not be here; add --plan")
    if parsed.raw and (parsed.chat_template is not None or parsed.template_arg):
        name = "--template-arg" if parsed.template_arg else "--chat-template"
        parser.error(f"argument {name}: --raw leaves the chat template out")
    if parsed.raw and parsed.system is not None:
        parser.error("argument --system: --raw has no chat template that a system message could go into")
    return parsed
