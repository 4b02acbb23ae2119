"""The plan on standard output, for --plan: nothing is loaded."""

import json
import shutil
import sys

from offload_runtime.loading.fetching import Download
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.plan.table import format_plan, wrapped


def print_plan(options: Options, as_json: bool, quiet: bool) -> None:
    """Print the plan, as text or JSON; quiet: without a line on stderr about what is to be downloaded."""
    preparation = prepare(options)
    print(json.dumps(preparation.plan.as_dict()) if as_json else plan_text(preparation), flush=True)
    download = Download.of(preparation.options)
    if download.models and not quiet:
        print(f"Not downloaded yet: {download}", file=sys.stderr)


def plan_text(preparation: Preparation) -> str:
    """The plan and what is predicted of it, as wide as the terminal."""
    from offload_runtime.planning.forecast import forecast

    packing = [str(preparation.packing)] if preparation.packing else []
    lines = [*packing, *forecast(preparation)]
    if not sys.stdout.isatty():  # what a program reads keeps its lines
        return "\n".join([format_plan(preparation.plan), *lines])
    width = shutil.get_terminal_size().columns
    return "\n".join([format_plan(preparation.plan, width), *wrapped(lines, width)])
