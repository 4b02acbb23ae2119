"""A job's input as it is before the job starts: all lines read once, checked and counted. Imports no torch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loaders.message_text import first_line, quoted
from offload_runtime.batch.input_file import InputLine, input_lines
from offload_runtime.batch.lines.batch_line import BatchLine, UnreadableLine
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.errors import UsageError

_EXAMPLES = (
    'a line is {"prompt": "…"} or {"messages": […]} with sampling values beside it, or of OpenAI\'s batch form; '
    "--help has more"
)


@dataclass(frozen=True)
class JobInput:
    """The lines of an input.

    digests: by the number of the line; None for a blank one. bad: lines that cannot be run; they are answered with an
    error. first_bad: what is wrong with the first of them.
    """

    path: Path
    forms: Forms
    digests: tuple[str | None, ...]
    bad: frozenset[int]
    first_bad: str | None

    def __len__(self) -> int:
        return sum(digest is not None for digest in self.digests)

    def lines(self) -> Iterator[InputLine]:
        """The lines again. Raises UsageError where the file has changed meanwhile."""
        last = -1
        for line in input_lines(self.path):
            last = line.index
            if last >= len(self.digests) or self.digests[last] != line.digest:
                raise self._changed(last)
            yield line
        if last + 1 < len(self.digests):
            raise self._changed(last + 1)

    def _changed(self, index: int) -> UsageError:
        return UsageError(
            f"--input {self.path} has changed while the job ran (line {index + 1}).\n"
            "  the replies so far are kept; start again, which says whether they still fit"
        )


def read_input(path: Path, forms: Forms) -> JobInput:
    """Read and check all lines. Raises UsageError if none of them can be run, or two have the same custom_id."""
    digests: list[str | None] = []
    bad: set[int] = set()
    named: dict[bytes, int] = {}
    first_bad = first = None
    for line in input_lines(path):
        digests += [None] * (line.index - len(digests))
        digests.append(line.digest)
        read = forms.read(line)
        first = first or (None if isinstance(read, UnreadableLine) else read)
        _check_name(path, read, named)
        try:
            read.requests()
        except UsageError as error:
            bad.add(line.index)
            first_bad = first_bad or f"line {line.index + 1}: {first_line(error)}"
    if not digests:
        raise UsageError(f"--input {path} holds no line")
    forms = forms.answered_as(first) if first else forms
    job = JobInput(path, forms, tuple(digests), frozenset(bad), first_bad)
    if len(bad) == len(job):
        raise UsageError(f"--input {path}: none of its {len(job)} lines can be run\n  {first_bad}\n  {_EXAMPLES}")
    return job


def _check_name(path: Path, line: BatchLine, named: dict[bytes, int]) -> None:
    """Raise UsageError if an earlier line has the same custom_id: nobody could tell their answers apart."""
    if line.custom_id is None:
        return
    digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()  # names may be long, and many
    if (earlier := named.setdefault(digest, line.index)) != line.index:
        raise UsageError(
            f"--input {path}: line {line.index + 1} has the custom_id of line {earlier + 1}, {quoted(line.custom_id)}: "
            "give each line its own"
        )
