"""Tries a schema in a process of its own before it is compiled here, where nothing could stop it."""

import json
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec

from loaders.message_text import quoted
from offload_runtime.errors import UsageError
from offload_runtime.grammar.response_format import grammar_of

_PATIENCE = 60  # seconds, generous for a busy machine; the limit on processor time usually ends it first
_CHILD = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from offload_runtime.grammar.trial_run import main; main()"
)


def check_response_format(given: object) -> None:
    """Raise UsageError, with the reason, for a response format that cannot be followed, whatever the model."""
    if grammar := grammar_of(given):
        check_installed()
        check_grammar(grammar)


def check_installed() -> None:
    """Raise UsageError if llguidance is missing."""
    if find_spec("llguidance") is None:
        raise UsageError(
            "response_format and tool_choice need the package llguidance, which is not installed:\n"
            '  pip install llguidance   or, with all that the server needs, pip install "sequoia-offload[serve]"'
        )


def check_grammar(grammar: str, asked: str = "response_format: the schema") -> None:
    """Raise UsageError, with the reason, for a grammar that llguidance cannot compile, or not at a bearable cost.

    asked: what it is for, in messages.
    """
    if reason := _fault(grammar):
        raise UsageError(f"{asked} cannot be followed: {quoted(reason, 300)}")


@lru_cache(maxsize=256)
def _fault(grammar: str) -> str:
    """What is wrong with a grammar; "" if nothing is."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
            input=grammar.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
            start_new_session=True,  # Ctrl-C is for the parent
        )
    except subprocess.TimeoutExpired:
        return "compiling it takes too long"
    return run.stdout.decode(errors="replace") if run.returncode == 0 else "compiling it takes too much time or memory"
