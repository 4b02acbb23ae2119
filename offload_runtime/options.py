"""Command line options, and the sampling values that can also change while a chat runs. Imports no torch."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loaders.adapters.locate import with_adapter
from loaders.quantization import BITS
from offload_runtime import __version__
from offload_runtime.errors import UsageError
from offload_runtime.run_options import DEMO_TARGET, DTYPES, RULES, TREES, Options, resolve_draft, resolve_model
from offload_runtime.start import PROJECT, command_name
from scheduler.machine import DEVICES
from scheduler.sizes import parse_size

Number = float | int


@dataclass(frozen=True)
class SamplingOptions:
    """How a reply is sampled; None leaves a value to the model's generation config, and makes a fresh seed.

    The field names are those of `OffloadRuntime.stream`.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None

    def with_value(self, name: str, text: str) -> "SamplingOptions":
        """A copy with one value read from text, "default" standing for None. Raises UsageError with the reason."""
        if name not in SAMPLING:
            raise UsageError(f"there is no value {name!r}; there are {', '.join(SAMPLING)}")
        try:
            change: dict[str, Any] = {name: None if text == "default" else SAMPLING[name].parse(text)}
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{name}: {error}") from None
        return replace(self, **change)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> "SamplingOptions":
        """The inverse of `as_arguments`, for values from a file: UsageError for unknown names and bad values."""
        options = cls()
        for name, value in values.items():
            options = options.with_value(name, "default" if value is None else str(value))
        return options

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `OffloadRuntime.stream`."""
        return asdict(self)


@dataclass(frozen=True)
class SamplingValue:
    """One entry of `SAMPLING`: how its text is read and checked, and what it means."""

    parse: Callable[[str], Number]
    help: str
    metavar: str = "X"


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A reader of integers from `low` to `high`, both allowed."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is out of range: {_range(low, high)}")
        return value

    return parse


def real_number(low: float, high: float | None = None, above: bool = False) -> Callable[[str], float]:
    """A reader of finite numbers from `low` to `high`, both allowed; `above` excludes `low` itself."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        inside = math.isfinite(value) and value >= low and (high is None or value <= high)
        if not inside or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is out of range: {_range(low, high, above)}")
        return value

    return parse


def _range(low: float, high: float | None, above: bool = False) -> str:
    start = f"above {low}" if above else f"at least {low}"
    return start if high is None else f"{start} and at most {high}"


def size(text: str) -> int:
    """A reader of sizes such as 20GiB."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def utf8_text(text: str) -> str:
    """A reader of text; bytes that are no UTF-8 reach a program as lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text") from None
    return text


def count_or_auto(text: str) -> int | None:
    """A reader of an integer of at least 1, or of "auto", which gives None."""
    return None if text == "auto" else whole_number(1)(text)


SAMPLING: dict[str, SamplingValue] = {
    "temperature": SamplingValue(real_number(0), "0 takes the likeliest token always"),
    "top_p": SamplingValue(real_number(0, 1, above=True), "keep the likeliest tokens of this total probability"),
    "top_k": SamplingValue(whole_number(0), "keep this many of the likeliest tokens; 0 keeps all", "N"),
    "min_p": SamplingValue(real_number(0, 1), "drop tokens less likely than this share of the likeliest"),
    "repetition_penalty": SamplingValue(real_number(0, above=True), "above 1 makes tokens that occurred less likely"),
    "max_new_tokens": SamplingValue(whole_number(1), "stop a reply after this many tokens", "N"),
    "seed": SamplingValue(whole_number(0, 2**63 - 1), "make a reply repeatable; a fresh one is drawn otherwise", "N"),
}


def model_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of a command that runs a model: with the model options, and with its texts shown as they stand."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [OPTIONS]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    add("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
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


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how to sample; `sampling_options` reads them back."""
    group = parser.add_argument_group("sampling", "What is not given comes from the model's generation config.")
    for name, value in SAMPLING.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=value.metavar, type=value.parse, help=value.help)


def model_options(arguments: argparse.Namespace) -> Options:
    """The model options in parsed arguments, with the bundled pair filled in."""
    model, adapter = with_adapter(
        DEMO_TARGET if arguments.model is None else resolve_model(arguments.model), arguments.adapter
    )
    names = (
        *("device", "device_memory", "host_memory", "dtype", "context_length", "offline"),
        *("tree", "verification", "tree_size", "tree_depth"),
        *("quantize", "quantized_directory"),
    )
    values = {name: getattr(arguments, name) for name in names}
    gpu = getattr(arguments, "gpu", None)
    return Options(model=model, draft=resolve_draft(model, arguments.draft), gpu=gpu, adapter=adapter, **values)


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The sampling options in parsed arguments."""
    return SamplingOptions(**{name: getattr(arguments, name) for name in SAMPLING})


CHAT_EXAMPLES = """examples:
  %(prog)s                                          chat with the demonstration pair
  %(prog)s -m DIR -d DRAFT_DIR                      chat with a model, sped up by a draft
  %(prog)s -m org/name:Q4_K_M                       chat with a GGUF file of a repository
  %(prog)s -m DIR --plan                            what would lie where, and how fast it may be
  %(prog)s -m DIR --plan --gpu rtx-4090             the same for a card that is not here
  %(prog)s -m org/name --plan                       the same for a model that is not downloaded
  %(prog)s -m DIR -p "Why is the sky blue?" --json  one reply, as JSON

exit codes: 0 ok, 1 failure of this program, 2 wrong use, 3 model files missing or damaged, 4 does not fit,
5 draft does not match, 130 interrupted"""


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
    if parsed.raw and parsed.system is not None:
        parser.error("argument --system: --raw has no chat template that a system message could go into")
    return parsed
