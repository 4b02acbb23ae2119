"""The server's command line: from arguments to a server that runs until it is told to stop."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from loaders.hub.names import directory_name, hub_name
from loaders.message_text import displayable
from offload_runtime.chat.printed_plan import plan_text, print_plan
from offload_runtime.chat.status import reply_line, start_notes
from offload_runtime.errors import UsageError
from offload_runtime.loading.fetching import fetched
from offload_runtime.options.arguments import model_options
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import DEMO_TARGET, Options
from offload_runtime.planning.planning import prepare
from offload_runtime.serve.http.loopback import is_loopback
from offload_runtime.serve.options import parse_serve_arguments
from offload_runtime.start import PROJECT

# What needs torch or the extra packages is imported where it is used.
if TYPE_CHECKING:
    import socket

    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.running_text import RunningText
    from offload_runtime.generation.runtime import OffloadRuntime

PACKAGES = ("starlette", "uvicorn", "prometheus_client")
DEMO_NAME = "sequoia-demo"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(arguments))


def _run(given: Sequence[str] | None) -> int:
    arguments = parse_serve_arguments(given)
    options = model_options(arguments)
    if arguments.plan:
        print_plan(options, as_json=False, quiet=arguments.quiet)
        return 0
    _check_packages()
    return _serve(arguments, options)


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"the server needs {', '.join(missing)}. Try: pip install '{PROJECT}[serve]'")


def _serve(arguments: argparse.Namespace, options: Options) -> int:
    from offload_runtime.serve.server import bind

    def note(text: str) -> None:
        if not arguments.quiet:
            print(displayable(text), file=sys.stderr, flush=True)

    with bind(arguments.host, arguments.port) as bound, load_runtime(options, arguments, note) as runtime:
        return _answer(arguments, runtime, bound, shown_name(options), note)


def load_runtime(options: Options, arguments: argparse.Namespace, note: Callable[[str], None]) -> "OffloadRuntime":
    """Fetch what is missing, say what comes, and load, with progress on the terminal."""
    from rich.console import Console

    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.options.progress import LoadingBar

    preparation = prepare(fetched(options, arguments.yes, arguments.quiet, plan_text))
    for line in start_notes(preparation):
        note(line)
    with LoadingBar(Console(stderr=True), arguments.quiet) as progress:
        return OffloadRuntime(preparation, progress)


def _answer(
    arguments: argparse.Namespace,
    runtime: "OffloadRuntime",
    bound: "socket.socket",
    name: str,
    note: Callable[[str], None],
) -> int:
    from offload_runtime.serve.app import make_app
    from offload_runtime.serve.endpoints import make_service
    from offload_runtime.serve.http.guard import Access
    from offload_runtime.serve.server import run_server, url_of

    service = make_service(runtime, arguments.model_name, name, arguments.queue, [_ReplyLog(runtime, note)])
    access = Access(arguments.api_key, is_loopback(arguments.host), tuple(arguments.cors))
    many = "one text" if runtime.parallel == 1 else f"{runtime.parallel} texts"
    greeting = f"{url_of(bound, arguments.host)} answers in OpenAI's form, {many} at once; Ctrl-C stops it"
    return run_server(make_app(service, access), bound, service.engine, arguments.grace, note, greeting)


@dataclass(frozen=True)
class _ReplyLog:
    """Notes a line about each text once it is written; told of passes by the engine."""

    runtime: "OffloadRuntime"
    note: Callable[[str], None]

    def passed(self, steps: "Sequence[tuple[RunningText, Step]]", seconds: float) -> None:
        for text, step in steps:
            if step.finish_reason is not None:
                stats = text.reply.stats
                line = reply_line(stats, self.runtime.plan, stats.prompt_tokens + stats.tokens)
                self.note(f"{step.finish_reason}: {line}")


def shown_name(options: Options) -> str:
    """The model's name for those who ask: that of the hub, or of its directory or file, never a path."""
    if options.model == DEMO_TARGET:
        return DEMO_NAME
    name = hub_name(options.model)
    return str(name) if name else directory_name(options.model)
