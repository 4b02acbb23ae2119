"""Tries a schema in a process of its own before it is compiled here, where nothing could stop it."""

import json
import subprocess
import sys
from functools import lru_cache

from loaders.message_text import quoted
from offload_runtime.errors import UsageError

_PATIENCE = 60  # seconds, generous for a busy machine; the limit on processor time usually ends it first
_CHILD = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from offload_runtime.grammar.trial_run import main; main()"
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
