"""Starts a command: Ctrl-C ends it quietly from the first import on, and only this project's packages are imported.

Imports only the standard library. `loaders` and `scheduler` are also the names of other published packages.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PROJECT = "sequoia-offload"
PACKAGES = ("loaders", "scheduler", "sequoia_tree")
MARK = f'__project__ = "{PROJECT}"'  # in the `__init__.py` of each


class ForeignPackageError(ImportError):
    """A package has the name of one of this project's, but is another."""


def start(module: str, arguments: Sequence[str] | None = None) -> int:
    """Import a command's module and call its `run`; return the exit code. arguments: None for those of the process.

    Missing or foreign packages are reported in one line.
    """
    try:
        with _ended_by_interrupts():
            check_packages()
            run = import_module(module).run
        return int(run(arguments))
    except ImportError as error:
        print(f"error: {_import_problem(error)}", file=sys.stderr)
        return 1
    finally:
        if arguments is None and _interrupts_raise():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's exit takes a while, too


def command_name(command: str, module: str) -> str:
    """How to call a command, in the same way as the running one: as installed, or by `python -m`."""
    return command if Path(sys.argv[0]).stem.startswith("sequoia-") else f"python -m {module}"


def check_packages() -> None:
    """Raise ForeignPackageError if another package has the name of one of this project's.

    None of them is imported: foreign code could do anything.
    """
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ForeignPackageError(f"the package `{name}` has lost files. Try: install {PROJECT} again")
        if MARK not in Path(spec.origin).read_text(encoding="utf-8", errors="replace"):
            raise ForeignPackageError(f"{spec.origin} is not {PROJECT}'s package `{name}`: {_remedy(name)}")


def _remedy(name: str) -> str:
    from importlib.metadata import packages_distributions  # slow to import

    others = sorted(set(packages_distributions().get(name, ())) - {PROJECT})
    if others:
        names = " ".join(others)
        return f"{names} was installed over it. Try: pip uninstall {names}, then install {PROJECT} again"
    return "it comes first on Python's path. Try: start in another directory, or rename it"


def _import_problem(error: ImportError) -> str:
    if isinstance(error, ForeignPackageError):
        return str(error)
    if (error.name or "").partition(".")[0] in (*PACKAGES, "offload_runtime"):
        return f"{PROJECT} is not installed whole ({error}). Try: install it again"
    return f"{error}, which {PROJECT} needs. Try: install {PROJECT} again, with its dependencies"


@contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Within the block, Ctrl-C ends the process at once and without a traceback."""
    raising = _interrupts_raise()
    if raising:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if raising:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupts_raise() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt, that is, it is not ignored (nohup) nor handled by the caller."""
    in_charge = threading.current_thread() is threading.main_thread()
    return in_charge and signal.getsignal(signal.SIGINT) is signal.default_int_handler
