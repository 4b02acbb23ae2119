"""Errors that a user can see; this package defines the base classes.

Each message says what is wrong, what was needed against what there is, and what to run instead. The other packages
add their own to the same hierarchy.
"""

from loaders.message_text import message_text


class OffloadError(Exception):
    """Base of every error that is the input's or the machine's fault rather than a bug.

    Most messages quote names and contents of files. Characters that would control a terminal are escaped here, for
    all messages, and a message is at most one screen long.
    """

    def __init__(self, message: object = ""):
        super().__init__(message_text(str(message)))


class ModelFilesError(OffloadError):
    """Model files are missing, truncated, damaged or contradict each other."""


class UnsupportedModelError(OffloadError):
    """The architecture, or the way its weights are stored, cannot be run."""


class DraftMismatchError(OffloadError):
    """Draft and target have different vocabularies."""
