"""All errors that a user can meet, and their exit codes."""

from loaders.errors import DraftMismatchError, ModelFilesError, OffloadError, UnsupportedModelError
from scheduler.errors import DoesNotFitError, MachineError

__all__ = [
    "ContextLengthError",
    "DoesNotFitError",
    "DraftMismatchError",
    "Interrupted",
    "MachineError",
    "ModelFilesError",
    "OffloadError",
    "PromptError",
    "UnsupportedModelError",
    "UsageError",
    "exit_code",
]

INTERRUPTED_EXIT_CODE = 130
_EXIT_CODES = {ModelFilesError: 3, UnsupportedModelError: 3, DoesNotFitError: 4, DraftMismatchError: 5}


class UsageError(OffloadError):
    """An option or argument has an invalid value."""


class PromptError(UsageError):
    """The prompt is empty, longer than the context, or holds ids outside the vocabulary."""


class ContextLengthError(PromptError):
    """The prompt is longer than the context."""


class Interrupted(Exception):
    """A pass was abandoned because the caller asked to stop; its results are dropped."""


def exit_code(error: OffloadError) -> int:
    """2 wrong use, 3 model files missing or damaged, 4 does not fit, 5 draft does not match."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 2)
