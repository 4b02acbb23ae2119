"""Common frame of all commands: output streams that take any text, errors as messages and exit codes."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from loaders.message_text import message_text
from offload_runtime.errors import INTERRUPTED_EXIT_CODE, OffloadError, exit_code

# Each is read once, when its library is imported. The warnings of the hub and of transformers are for programmers.
# OMP_WAIT_POLICY: threads that spin while they wait take cores from reading and computing. On two busy cores, replies
# of the demonstration pair were 4 times slower with OpenMP's default.
ENVIRONMENT = {"HF_HUB_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "passive"}


def run_command(run: Callable[[], int]) -> int:
    """Run a command and return its exit code. Every error that a user can meet becomes a message on stderr."""
    _prepare_streams()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return run()
    except OffloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        _drop_output()  # the reader of stdout has closed it, like `head`
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _drop_output()
            print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        elif error.filename is not None:
            print(message_text(f"error: {error.filename}: {error.strerror}"), file=sys.stderr)
        else:
            raise
        return 1


def _prepare_streams() -> None:
    """Make the streams accept any text, and replace streams that the caller closed by os.devnull."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a reply may hold characters that the terminal cannot encode


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print without the code location, which does not help users."""
    print(message_text(f"warning: {message}"), file=sys.stderr)


def _drop_output() -> None:
    """Discard what stdout still buffers, so that it does not fail again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
