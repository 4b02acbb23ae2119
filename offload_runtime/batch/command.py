"""The command: reads a job, loads the model, and writes the answers as they come."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict

from loaders.hub.names import directory_name
from loaders.message_text import displayable
from offload_runtime.batch.answers import Answer, LineRunner, error_answers
from offload_runtime.batch.arguments import parse_arguments
from offload_runtime.batch.input_file import InputLine
from offload_runtime.batch.job_input import JobInput, read_input
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.batch.output_file import OutputFile
from offload_runtime.batch.progress import JobProgress
from offload_runtime.batch.ray_workers import RayWorkers
from offload_runtime.batch.stopping import StopOnSignal
from offload_runtime.options.arguments import model_options
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import Options
from offload_runtime.options.sampling_options import sampling_options
from offload_runtime.serve.command import load_runtime

Source = Callable[[Iterator[InputLine], Callable[[], bool], Callable[[int], None]], Iterator[Answer]]
"""Answers lines. Called with these, whether to stop, and what to call with the number of tokens of every pass."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(parse_arguments(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    options, sampling = model_options(arguments), sampling_options(arguments)
    keys = JobKeys.of(options, {**asdict(sampling), "chat": arguments.chat})
    forms = Forms(keys, sampling, directory_name(options.model), arguments.chat)
    job = read_input(arguments.input, forms)
    with OutputFile(arguments.output, job) as output, ExitStack() as resources:
        command = _Command(arguments, job, output)
        command.show_what_comes()
        return command.answer(command.source(options, resources)) if output.left else 0


class _Command:
    def __init__(self, arguments: argparse.Namespace, job: JobInput, output: OutputFile):
        self._arguments, self._job, self._output = arguments, job, output

    def show_what_comes(self) -> None:
        job, output = self._job, self._output
        if bad := len(job.bad - output.done):
            self._note(f"{_lines(bad)} cannot be run and will get an error for an answer\n  {job.first_bad}")
        if output.done:
            then = "the job goes on with the others" if output.left else "nothing is left to do"
            self._note(f"{len(output.done)} of {_lines(len(job))} have an answer in {output.path}: {then}")

    def source(self, options: Options, resources: ExitStack) -> Source:
        """What answers the lines that are left; the model is loaded only if one of them can be run."""
        forms = self._job.forms
        if len(self._job.bad - self._output.done) == self._output.left:
            return lambda lines, should_stop, on_pass: error_answers(forms, lines)
        address, workers = self._arguments.ray, self._arguments.ray_workers
        if address is not None:
            return resources.enter_context(RayWorkers(address, workers, options, forms)).answers
        runtime = resources.enter_context(load_runtime(options, self._arguments, self._note))
        return lambda lines, should_stop, on_pass: LineRunner(runtime, forms, should_stop, on_pass).answers(lines)

    def answer(self, source: Source) -> int:
        """Write what the source answers; return the exit code."""
        output, done = self._output, frozenset(self._output.done)
        lines = (line for line in self._job.lines() if line.index not in done)
        with StopOnSignal() as stop:
            progress = JobProgress(len(self._job), len(done), output.failed, self._arguments.quiet, stop.requested)
            try:
                with progress:
                    for answer in source(lines, stop.requested, progress.wrote):
                        output.append(answer.index, answer.line, answer.failed)
                        progress.answered(answer.failed)
            finally:
                self._note(self._result(progress))
        return 128 + (stop.signal_number or 0) if output.left else 0

    def _result(self, progress: JobProgress) -> str:
        output = self._output
        if not output.left:
            return f"{progress.text()} · {output.path}"
        return (
            f"stopped: {len(output.done)} of {_lines(len(self._job))} have an answer in {output.path}; "
            "the same command goes on with the others"
        )

    def _note(self, text: str) -> None:
        if not self._arguments.quiet:
            print(displayable(text), file=sys.stderr, flush=True)  # lines of the input may hold anything


def _lines(count: int) -> str:
    return f"{count} line{'s' * (count != 1)}"
