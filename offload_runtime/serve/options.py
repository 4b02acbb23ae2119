"""The server's command line options. Imports no torch."""

import argparse
import os
import re
from collections.abc import Sequence

from offload_runtime.options.arguments import add_plan_options, check_plan_options, model_parser
from offload_runtime.options.fields import add_options
from offload_runtime.options.readers import real_number, utf8_text, whole_number
from offload_runtime.options.run_options import RunOptions
from offload_runtime.serve.http.loopback import is_loopback
from offload_runtime.start import command_name

KEY_VARIABLE = "SEQUOIA_OFFLOAD_API_KEY"
GRACE = 8.0  # seconds; a container's stop sends SIGKILL after 10
EXAMPLES = f"""examples:
  %(prog)s
      the demonstration pair at http://127.0.0.1:8000
  %(prog)s -m DIR -d DRAFT_DIR --parallel 4
      a model, with a draft, that writes four texts at once
  %(prog)s -m DIR --host 0.0.0.0 --api-key KEY
      for other machines, which need the key
  curl http://127.0.0.1:8000/v1/chat/completions \\
      -H 'Content-Type: application/json' \\
      -d '{{"messages": [{{"role": "user", "content": "Why?"}}]}}'
      one reply

environment: {KEY_VARIABLE} is an API key that the list of
processes does not show

exit codes: 0 ok, 1 failure of this program, 2 wrong use,
3 model files missing or damaged, 4 does not fit, 5 draft does not match,
130 interrupted, 143 terminated"""


def serve_parser() -> argparse.ArgumentParser:
    """The parser of the server, `sequoia-serve` as an installed command."""
    description = "Serve a language model that is larger than the device's memory over HTTP, in OpenAI's form."
    parser = model_parser(command_name("sequoia-serve", "offload_runtime.serve"), description, EXAMPLES)
    parser.set_defaults(parallel="auto")
    add_options(parser.add_argument_group("prompt"), RunOptions, "prompt")
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; others than this machine's own need a key, see below"
    )
    group.add_argument(
        "--port", metavar="N", type=whole_number(0, 65535), default=8000, help="0 takes a free one (default: 8000)"
    )
    keys = group.add_mutually_exclusive_group()
    keys.add_argument("--api-key", metavar="KEY", type=_key, help="answer only requests that bring this key")
    keys.add_argument("--no-api-key", action="store_true", help="answer anybody, also with another --host")
    group.add_argument(
        "--model-name", metavar="NAME", type=utf8_text, help="the only model that requests may name (default: any)"
    )
    group.add_argument(
        "--queue",
        metavar="N",
        type=whole_number(0, 100_000),
        default=64,
        help="texts that may wait; more are answered with 503 (default: 64)",
    )
    group.add_argument(
        "--cors",
        metavar="ORIGIN",
        type=_origin,
        action="append",
        default=[],
        help="let web pages of this origin ask, such as https://chat.example; *: of all; may be repeated",
    )
    group.add_argument(
        "--grace",
        metavar="SECONDS",
        type=real_number(0, 1e6),
        default=GRACE,
        help=f"time that replies have to end after Ctrl-C or SIGTERM (default: {GRACE:.0f})",
    )
    group = add_plan_options(parser)
    group.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def parse_serve_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message if it is wrong."""
    parser = serve_parser()
    parsed = parser.parse_args(arguments)
    check_plan_options(parser, parsed)
    if parsed.api_key is None and not parsed.no_api_key and os.environ.get(KEY_VARIABLE):
        try:
            parsed.api_key = _key(os.environ[KEY_VARIABLE])
        except argparse.ArgumentTypeError as error:
            parser.error(f"{KEY_VARIABLE}: {error}")
    if parsed.api_key is None and not parsed.no_api_key and not is_loopback(parsed.host):
        parser.error(
            f"argument --host: {parsed.host} can be reached from other machines: give them a key with --api-key KEY, "
            "or say --no-api-key to answer anybody"
        )
    return parsed


def _key(text: str) -> str:
    """Reads an API key: what a header can hold."""
    if not re.fullmatch(r"[!-~]{1,1024}", text):
        raise argparse.ArgumentTypeError("a key is of letters, digits and signs of ASCII, without spaces")
    return text


def _origin(text: str) -> str:
    """Reads an origin as browsers send it: scheme, host and port, nothing else."""
    if text != "*" and not re.fullmatch(r"https?://[^/\s]+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no origin, such as https://chat.example or http://localhost:3000"
        )
    return text
