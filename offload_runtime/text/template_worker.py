"""The child process that renders chat templates: a template is a program written by whoever published the model.

Jinja's sandbox keeps it from the system, but not from computing for ever or filling memory inside one C call
(`9**9**9`, `"x" * 10**10`, `|center(10**9)`), so the operating system enforces limits on the process.
Templates may use what transformers gives them: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
import resource
import signal
from datetime import datetime
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 512 << 20  # of address space; Python itself takes some 40 MB
LONGEST_MESSAGE = 300  # characters of an error message


class RefusedError(TemplateError):
    """The template called raise_exception."""


class _Generation(Extension):
    """{% generation %} marks, for training, what the model wrote; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names of Python's own attributes, which are a way out of the sandbox."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *given = args
        Namespace.__init__(self)
        for name, value in dict(*given, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot have {name!r}")
        super().__setitem__(name, value)


def serve(requests: int, answers: int) -> None:
    """Read requests from one file descriptor and answer on another until the parent closes its end.

    A rendering that takes more processor time than its request allows ends the process.
    """
    incoming, outgoing = Connection(requests, writable=False), Connection(answers, readable=False)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    while True:
        try:
            request = json.loads(incoming.recv_bytes())
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = json.dumps(_answer(request)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        outgoing.send_bytes(answer)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    """The rendered text, or the kind of error and its message."""
    try:
        pieces, room = [], request["longest"]
        for piece in _compiled(request["template"]).generate(**request["variables"]):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                return {"error": "length", "message": ""}
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except Exception as error:  # whatever a program can raise
        kinds = {RefusedError: "refused", TemplateSyntaxError: "syntax"}
        kind = next((kind for kind_of, kind in kinds.items() if isinstance(error, kind_of)), "failed")
        return {"error": kind, "message": _message(error, named=kind == "failed")}


def _message(error: Exception, named: bool) -> str:
    text = str(error)[:LONGEST_MESSAGE]
    if isinstance(error, TemplateSyntaxError):
        return f"{(error.message or '')[:LONGEST_MESSAGE]} (line {error.lineno})"
    return f"{type(error).__name__}: {text}" if named else text


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": _Namespace,
        "dict": lambda *given, **values: dict(*given, **values),
    }
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, which Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise RefusedError(message)
