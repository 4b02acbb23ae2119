"""The command line of the measurement. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from offload_runtime.options.arguments import model_parser
from offload_runtime.options.readers import whole_number
from offload_runtime.options.sampling_options import SAMPLING
from offload_runtime.speculation.acceptance_store import Setting
from offload_runtime.start import command_name

DESCRIPTION = """\
How often a target accepts its draft's proposals, by sampling setting, child number and the draft's own confidence.
The target writes replies; then both models give their distributions at every token of these. The result is kept where
the runtime finds it to shape its trees. Without --model the bundled demonstration pair is measured."""

EPILOG = """examples:
  %(prog)s -m DIR -d DRAFT_DIR --quick
      the five usual settings in about five minutes, into the cache
  %(prog)s -m DIR -d DRAFT_DIR --temperature 0.7 --top-p 0.8
  %(prog)s -m DIR -d DRAFT_DIR --output beside
      to ship with the draft

output: "cache" is the user's cache, $SEQUOIA_OFFLOAD_CACHE or ~/.cache/sequoia-offload, which keeps what it holds of
other settings; "beside" is acceptance.json beside the draft's weights; else the name of a file that ends in .json.
Those two are replaced whole.

exit codes: 0 ok, 1 failure of this program, 2 wrong use, 3 model files missing or damaged, 4 does not fit,
5 draft does not match, 130 interrupted"""

SETTINGS = (
    Setting(temperature=0.0),
    Setting(temperature=0.6),
    Setting(temperature=1.0),
    Setting(temperature=0.6, top_p=0.9),
    Setting(temperature=1.0, top_p=0.9),
)
POSITIONS, NEW_TOKENS = 3000, 128
QUICK_MINUTES = 5


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message if it is wrong."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.output not in ("cache", "beside") and not parsed.output.endswith(".json"):
        parser.error(
            f"argument --output: {parsed.output!r} is neither cache, nor beside, nor a name that ends in .json"
        )
    return parsed


def settings(arguments: argparse.Namespace) -> list[Setting]:
    """What to measure: every given temperature with every given top-p; the usual settings if neither is given."""
    if arguments.temperature is None and arguments.top_p is None:
        return list(SETTINGS)
    temperatures = arguments.temperature or [0.0, 0.6, 1.0]
    wanted = (Setting(temperature=t, top_p=p) for t in temperatures for p in arguments.top_p or [1.0])
    return list(dict.fromkeys(wanted))


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        command_name("sequoia-measure-acceptance", "offload_runtime.measure_acceptance"), DESCRIPTION, EPILOG
    )
    add = parser.add_argument_group("measurement").add_argument
    for name in ("temperature", "top_p"):
        option, value = f"--{name.replace('_', '-')}", SAMPLING[name]
        add(option, metavar="X", type=value.parse, nargs="+", help=f"one or more; {value.help}")
    add("--prompts", metavar="FILE", type=Path, help="one prompt a line, or prompts separated by blank lines")
    add(
        "--max-new-tokens",
        metavar="N",
        type=whole_number(1),
        default=NEW_TOKENS,
        help=f"longest reply, in tokens (default: {NEW_TOKENS})",
    )
    add(
        "--positions",
        metavar="N",
        type=whole_number(1),
        default=POSITIONS,
        help=f"tokens of replies to measure at, per setting (default: {POSITIONS}); at temperature 0 every prompt is "
        "answered once at most",
    )
    add(
        "--quick",
        metavar="MINUTES",
        type=whole_number(1),
        nargs="?",
        const=QUICK_MINUTES,
        help=f"measure at as many tokens as about so many minutes allow (without a number: {QUICK_MINUTES})",
    )
    add(
        "--seed", metavar="N", type=whole_number(0, 2**62), default=0, help="of replies and drawn children (default: 0)"
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="WHERE", default="cache", help="cache, beside, or FILE.json (default: cache); see below")
    add("--json", action="store_true", help="print the figures as one JSON object instead of tables")
    add("--quiet", action="store_true", help="leave out the lines that show progress")
    return parser
