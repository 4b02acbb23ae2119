"""The chat's command line: from arguments to one answer, or to a conversation at the terminal."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loaders.progress import StageProgress
from loaders.sizes import format_size
from offload_runtime.chat.background import FIRST_STAGE, Loaded, Loading, without_waiting
from offload_runtime.chat.given import given_prompt
from offload_runtime.chat.printed_plan import plan_text, print_plan
from offload_runtime.chat.ready import can_converse
from offload_runtime.chat.status import duration, start_notes
from offload_runtime.chat.terminal.keyboard import edits_lines, line_reader, without_echo
from offload_runtime.chat.thinking import Thinking
from offload_runtime.errors import INTERRUPTED_EXIT_CODE, UsageError
from offload_runtime.generation.config_fields import unapplied_note
from offload_runtime.grammar.trial import check_response_format
from offload_runtime.loading.fetching import fetched
from offload_runtime.options.arguments import model_options, parse_chat_arguments
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import Options
from offload_runtime.options.sampling_options import sampling_options
from offload_runtime.planning.planning import Preparation, prepare

# The rest is imported where it is used: `--help` and `--plan` answer sooner than torch can be imported.
if TYPE_CHECKING:
    from offload_runtime.chat.terminal.screen import Screen
    from offload_runtime.generation.runtime import OffloadRuntime
    from offload_runtime.planning.quantized_directory import Packing
    from offload_runtime.text.conversation import Conversation

DEMO_NOTE = (
    "No --model given: this is the bundled demonstration of the machinery. "
    "A model of a few million parameters does not converse."
)
GREETING = "/help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return without_waiting(lambda: run_command(lambda: _run(parse_chat_arguments(arguments))))


def _run(arguments: argparse.Namespace) -> int:
    options = model_options(arguments)
    if arguments.plan:
        print_plan(options, arguments.json, arguments.quiet)
        return 0
    from offload_runtime.chat.terminal.screen import Screen

    check_response_format(arguments.response_format)
    screen = Screen(quiet=arguments.quiet or arguments.json)
    prompt = given_prompt(arguments.prompt, arguments.file, screen.note)
    if prompt is None and arguments.json:
        raise UsageError("--json answers one prompt: give --prompt TEXT or --file FILE, or pipe the prompt in")
    options = fetched(options, arguments.yes, screen.quiet, plan_text)
    preparation = prepare(options)
    _show_what_comes(screen, preparation, arguments)
    if note := unapplied_note(options.model):
        screen.note(note)
    if prompt is None and edits_lines() and not _packs(preparation) and can_converse(options, arguments.raw):
        behind = Loading(lambda progress: _load_behind(options, preparation, arguments, progress), preparation.plan)
        return _chat(behind, arguments, screen)
    loaded = _load_before(options, preparation, arguments, screen)
    if prompt is None:
        return _chat(Loading.done(loaded), arguments, screen)
    with loaded.runtime:
        return _answer_once(loaded, arguments, screen, prompt)


def _show_what_comes(screen: "Screen", preparation: Preparation, arguments: argparse.Namespace) -> None:
    if arguments.model is None:
        screen.note(DEMO_NOTE)
    for note in start_notes(preparation):
        screen.note(note)


def _new_conversation(options: Options, arguments: argparse.Namespace) -> "Conversation":
    from offload_runtime.text.conversation import Conversation
    from offload_runtime.text.prompt import chat_tokenizer

    tokenizer = chat_tokenizer(options.model, options.chat_template)
    return Conversation(tokenizer, arguments.system, arguments.raw, options.template_arguments)


def _load_behind(
    options: Options, preparation: Preparation, arguments: argparse.Namespace, progress: StageProgress
) -> Loaded:
    conversation = _new_conversation(options, arguments)
    return Loaded(_load(preparation, progress), conversation, Thinking(conversation, arguments.thinking))


def _load_before(options: Options, preparation: Preparation, arguments: argparse.Namespace, screen: "Screen") -> Loaded:
    """Load everything before anything can be typed, with its progress on lines of its own."""
    with screen.busy(FIRST_STAGE):
        conversation = _new_conversation(options, arguments)  # before loading: refuses a base model at once
    return Loaded(_load_shown(preparation, screen), conversation, Thinking(conversation, arguments.thinking))


def _load(preparation: Preparation, progress: StageProgress) -> "OffloadRuntime":
    from offload_runtime.generation.runtime import OffloadRuntime

    return OffloadRuntime(preparation, progress)


def _load_shown(preparation: Preparation, screen: "Screen") -> "OffloadRuntime":
    from loaders.quantize.work_directory import begun_bytes
    from offload_runtime.options.progress import LoadingBar

    packing = preparation.packing if _packs(preparation) else None
    if packing:
        takes = _packing_time(packing, preparation.plan.device)
        screen.note(f"packing takes about {takes}; after Ctrl-C the next start goes on from there")
    try:
        with LoadingBar(screen.console, screen.quiet) as progress:
            runtime = _load(preparation, progress)
    except KeyboardInterrupt:
        if packing and (kept := begun_bytes(packing.directory)):
            screen.note(f"{format_size(kept)} of packed weights are kept: the same command goes on from there")
        raise
    if runtime.packing and runtime.packing is not preparation.packing:
        screen.note(str(runtime.packing.report))
    return runtime


def _packs(preparation: Preparation) -> bool:
    """Whether weights are packed before they are loaded."""
    return preparation.packing is not None and not preparation.packing.report


def _packing_time(packing: "Packing", device: str) -> str:
    from loaders.quantize.calibrated.stage import calibration_seconds
    from loaders.quantize.lossless_recipe import LosslessRecipe
    from loaders.quantize.work_directory import begun_bytes
    from loaders.quantize.write import cores, packing_seconds
    from loaders.quantize.write_lossless import encoding_seconds

    recipe, begun = packing.quantization, begun_bytes(packing.directory)
    if isinstance(recipe, LosslessRecipe):
        return f"{duration(encoding_seconds(recipe, begun))} on {cores()} cores"
    seconds = packing_seconds(recipe, begun)
    if not recipe.calibration:
        return f"{duration(seconds)} on {cores()} cores"
    seconds += calibration_seconds(recipe, device)
    return f"{duration(seconds)} on {'the GPU' if device == 'cuda' else f'{cores()} cores'}"


def _chat(loading: Loading, arguments: argparse.Namespace, screen: "Screen") -> int:
    from offload_runtime.chat.commands import completions
    from offload_runtime.chat.session import Chat
    from offload_runtime.chat.terminal.completion import CommandCompleter
    from offload_runtime.chat.terminal.history import state_directory

    screen.note(GREETING)
    kept = None if arguments.no_history else state_directory()
    history, last = (kept / "history", kept / "last.json") if kept else (None, None)
    read_line = line_reader(history, CommandCompleter(completions()), loading)
    sampling, overflow = sampling_options(arguments), arguments.context_overflow
    with loading:
        chat = Chat(loading, sampling, screen, read_line, last, overflow, arguments.system, arguments.thinking)
        return chat.run()


def _answer_once(loaded: Loaded, arguments: argparse.Namespace, screen: "Screen", prompt: str) -> int:
    from offload_runtime.chat.status import reply_line
    from offload_runtime.chat.streaming import ReplyStream

    if loaded.thinking.note:
        screen.note(loaded.thinking.note)
    runtime, as_json = loaded.runtime, arguments.json
    ids = loaded.conversation.add_user(prompt)
    write = (lambda text: None) if as_json else screen.write
    think = screen.think if loaded.thinking.is_shown and not as_json else None
    with without_echo() as restore_terminal:
        stream = ReplyStream(screen, lambda: _leave_at_once(restore_terminal))
        with stream.interrupt:
            reply = stream.run(runtime, loaded.conversation, ids, sampling_options(arguments), write, think)
    screen.end_reply()
    screen.note(reply_line(reply.stats, runtime.plan, len(ids) + len(reply.token_ids)))
    if as_json:
        names = ("text", "reasoning", "token_ids", "finish_reason", "seed")
        content = {name: getattr(reply, name) for name in names}
        print(json.dumps({**content, "stats": reply.stats.as_dict(), "plan": runtime.plan.as_dict()}), flush=True)
    return INTERRUPTED_EXIT_CODE if reply.finish_reason == "interrupted" else 0


def _leave_at_once(restore_terminal: Callable[[], None]) -> None:
    restore_terminal()
    os._exit(INTERRUPTED_EXIT_CODE)
