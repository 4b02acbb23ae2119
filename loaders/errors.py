"""Errors a user can meet, from the files upwards.

Each message says what is wrong, what was needed against what there is, and what to run instead. The other packages
add theirs to the same hierarchy.
"""

from loaders.message_text import message_text


class OffloadError(Exception):
    """Base of every error that is the input's or the machine's fault rather than a bug.

    Names and contents of files are part of most messages; what of them would steer a terminal is escaped here, for
    all messages, and a message is no longer than a screen.
    """

    def __init__(self, message: object = ""):
        super().__init__(message_text(str(message)))


class ModelFilesError(OffloadError):
    """Model files are missing, truncated, damaged or contradict each other."""


class UnsupportedModelError(OffloadError):
    """The architecture, or the way its weights are stored, cannot be run."""


class DraftMismatchError(OffloadError):
    """Draft and target do not share their tokens."""
