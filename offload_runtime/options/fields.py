"""Options as dataclass fields, from which flags and function arguments are derived. Imports no torch."""

import argparse
import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Concatenate, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Owner = TypeVar("Owner")
Record = TypeVar("Record")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Option:
    """How a field of a dataclass is given as text, and what it means.

    parse: argparse's `type`. group: of the command line; None for an argument of functions only. flags: instead of the
    field's name. unsaid: the default, in words. repeats: the flag may be given several times, and the sequences that
    `parse` returns are joined.
    """

    help: str
    metavar: str | None = None
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    group: str | None = "model"
    flags: tuple[str, ...] = ()
    unsaid: str | None = None
    repeats: bool = False


def described(*description: Any, **more: Any) -> dict[str, Option]:
    """The metadata of a field that is an option; arguments are those of `Option`."""
    return {"option": Option(*description, **more)}


def option(*description: Any, default: Any = None, **more: Any) -> Any:
    """A field with a default that is an option."""
    return field(default=default, metadata=described(*description, **more))


def options_of(record: Any) -> dict[str, Option]:
    """The options among the fields of a dataclass, by name."""
    return {one.name: one.metadata["option"] for one in fields(record) if "option" in one.metadata}


def add_options(parser: argparse._ActionsContainer, record: Any, group: str) -> None:
    """Add a flag, with the field's default, for every option of the dataclass `record` in this group."""
    defaults = {one.name: None if one.default is MISSING else one.default for one in fields(record)}
    for name, one in options_of(record).items():
        if one.group != group:
            continue
        default, reading = defaults[name], dict[str, Any](action="store_true")
        if default is not False:
            action = "extend" if one.repeats else "store"
            reading = {"metavar": one.metavar, "type": one.parse, "choices": one.choices, "action": action}
        unsaid = default if isinstance(default, str) else one.unsaid
        text = f"{one.help} (default: {unsaid})" if unsaid else one.help
        flags = one.flags or (f"--{name.replace('_', '-')}",)
        parser.add_argument(*flags, dest=name, default=default, help=text, **reading)


def values_of(record: Any, given: object) -> dict[str, Any]:
    """The attributes of `given`, parsed arguments or an instance, that are fields of the dataclass `record`."""
    return {one.name: getattr(given, one.name) for one in fields(record) if hasattr(given, one.name)}


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the closest name, or else all names."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"


def takes_fields_of(
    record: Callable[Arguments, Record],
) -> Callable[[Callable[[Owner, Record], Result]], Callable[Concatenate[Owner, Arguments], Result]]:
    """Let a method that takes a dataclass be called with its fields, which become its signature and its help.

    A call with an unknown name raises TypeError with the closest name.
    """
    taken = inspect.signature(record)

    def decorate(method: Callable[[Owner, Record], Result]) -> Callable[Concatenate[Owner, Arguments], Result]:
        @functools.wraps(method)
        def call(owner: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for name in kwargs:
                if name not in taken.parameters:
                    raise TypeError(f"{method.__name__}() has no argument {name!r}; {nearest(name, taken.parameters)}")
            taken.bind(*args, **kwargs)  # so that the error is about the user's call
            return method(owner, record(*args, **kwargs))

        own = inspect.signature(method)
        first = next(iter(own.parameters.values()))
        call.__signature__ = own.replace(parameters=[first, *taken.parameters.values()])  # type: ignore[attr-defined]
        lines = [textwrap.fill(f"{name}: {one.help}", 100) for name, one in options_of(record).items()]
        call.__doc__ = "\n".join([inspect.getdoc(method) or "", "", *lines])
        return call

    return decorate


def takes_arguments_of(
    other: Callable[Arguments, object],
) -> Callable[[Callable[..., Result]], Callable[Arguments, Result]]:
    """Give a function that passes all its arguments to `other` the signature of `other`."""

    def decorate(function: Callable[..., Result]) -> Callable[Arguments, Result]:
        shown = inspect.signature(other).replace(return_annotation=inspect.signature(function).return_annotation)
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return decorate
