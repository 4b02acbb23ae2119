"""Where JSON lines go."""

from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from offload_runtime.errors import UsageError


def open_lines(file: str | Path, resources: ExitStack) -> TextIO:
    """The file that --json names, open for as long as `resources` are. Raises UsageError."""
    try:
        return resources.enter_context(Path(file).open("w", encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--json {file}: cannot be written ({error.strerror})") from error
