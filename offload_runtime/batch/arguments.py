"""The job's command line options. Imports no torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from offload_runtime.options.arguments import model_parser
from offload_runtime.options.fields import add_options
from offload_runtime.options.readers import whole_number
from offload_runtime.options.run_options import RunOptions
from offload_runtime.options.sampling_options import add_sampling_options
from offload_runtime.start import command_name

DESCRIPTION = """Answer a file of prompts: one line of JSON each, in and out.

The job can be interrupted at any moment, also by a kill or a loss of power: the same command goes on from there."""
EXAMPLES = r"""examples:
  %(prog)s -m DIR --input prompts.jsonl --output replies.jsonl
      answer every line; run it again to go on after an interruption
  %(prog)s -m DIR --input prompts.jsonl --output replies.jsonl --temperature 0 --max-new-tokens 200
      values for lines that do not say how to sample

lines of the input:
  {"prompt": "Once upon a time", "max_new_tokens": 50, "id": "a"}
      a text to continue; with --chat a user's message to answer
  {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0}
      a conversation to answer, with sampling values as in the options above; "id" and "metadata" come back
  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}
      OpenAI's batch form, also for /v1/completions

lines of the output, in the order in which replies are finished:
  {"request_id": "…", "index": 0, "id": "a", "text": "…", "finish_reason": "stop", "usage": {…}, "seed": 1}
      "index" is the number of the input's line, from 0
  {"request_id": "…", "index": 1, "error": {"code": "invalid_request", "message": "…"}}
      for a line that cannot be answered; the job goes on
  {"id": "…", "custom_id": "a", "response": {"status_code": 200, "request_id": "…", "body": {…}}, "error": null}
      for a line of OpenAI's form

exit codes: 0 every line has an answer, if only an error,
1 failure of this program or a full disk, 2 wrong use,
3 model files missing or damaged, 4 does not fit, 5 draft does not match,
130 interrupted, 143 terminated"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 and a message if it is wrong."""
    parser = model_parser(command_name("sequoia-batch", "offload_runtime.batch"), DESCRIPTION, EXAMPLES)
    parser.set_defaults(parallel="auto")
    add_sampling_options(parser)
    group = parser.add_argument_group("job")
    group.add_argument("--input", metavar="FILE", type=Path, required=True, help="the prompts, JSON Lines")
    group.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="the replies; what is there already is not redone"
    )
    group.add_argument("--chat", action="store_true", help='answer each "prompt" as a user\'s message')
    add_options(group, RunOptions, "prompt")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on the machines of a Ray cluster: auto, or HOST:PORT; local starts one here. Needs the extra `ray`",
    )
    group.add_argument(
        "--ray-workers",
        metavar="N",
        type=whole_number(1),
        help="models to load in the cluster (default: one for each GPU; one for each machine if there is none)",
    )
    group.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parsed = parser.parse_args(arguments)
    if parsed.ray_workers is not None and parsed.ray is None:
        parser.error("argument --ray-workers: it is for a cluster; add --ray ADDRESS")
    return parsed
