"""The cells of the comparison, what was measured of one, and the file that keeps it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from offload_runtime.errors import UsageError
from offload_runtime.speculation.acceptance_store import Setting

FORMAT = "sequoia-offload comparison, version 2"
MOST_DEPTH = 63
REFERENCE = "sequoia"


@dataclass(frozen=True)
class Compared:
    """A method: its tree and rule. automatic: its tree is the static one that the runtime makes where it chooses."""

    tree: str
    verification: str
    meaning: str
    automatic: bool = False


METHODS = {
    "chain": Compared("chain", "top-down", "one chain (speculative decoding)"),
    "chains": Compared("chains", "top-down", "k chains from the root, drawn without replacement"),
    "specinfer": Compared("specinfer", "multi-round", "k chains drawn with replacement, SpecInfer's rule"),
    "topk": Compared("topk", "match", "Sequoia's tree filled with the likeliest tokens"),
    "sequoia": Compared("sequoia", "top-down", "Sequoia's static tree and rule"),
    "sequoia-traversal": Compared("sequoia", "traversal", "Sequoia's static tree, verified from its leaves up"),
    "sequoia-damped": Compared("sequoia", "traversal", "the deeper static tree that auto makes", automatic=True),
    "adaptive": Compared("adaptive", "traversal", "a tree grown for the text, verified from its leaves up"),
}


def named(setting: Setting) -> str:
    """A setting as tables call it."""
    return f"temperature {setting.temperature:g}" + (f", top-p {setting.top_p:g}" if setting.temperature else "")


def settings(temperatures: Iterable[float], top_ps: Iterable[float]) -> list[Setting]:
    """Every temperature with every top-p; temperature 0 once."""
    top_ps = list(top_ps)
    return list(dict.fromkeys(Setting(temperature, top_p=top_p) for temperature in temperatures for top_p in top_ps))


@dataclass(frozen=True)
class Cell:
    """One method with trees of at most `size` nodes, root included, under one sampling."""

    method: str
    size: int
    setting: Setting

    def __str__(self) -> str:
        return f"{self.method}, {self.size} nodes, {named(self.setting)}"


@dataclass(frozen=True)
class CountedReply:
    """The contexts in one reply, which the driver wrote, and the sum of the tokens that a method yields there."""

    prompt: int
    seed: int
    tokens: float
    contexts: int


@dataclass(frozen=True)
class Measured:
    """What was measured of a cell."""

    cell: Cell
    replies: tuple[CountedReply, ...]

    @property
    def contexts(self) -> int:
        return sum(reply.contexts for reply in self.replies)

    def as_record(self) -> dict[str, Any]:
        """A JSON line; `from_record` reads it back. Replies are lists in the order of `CountedReply`."""
        values = asdict(self.cell)
        setting = values.pop("setting")
        sampling = {name: setting[name] for name in ("temperature", "top_p")}
        return {**values, **sampling, "replies": [list(astuple(reply)) for reply in self.replies]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Measured":
        """ValueError, KeyError or TypeError where it is no such record."""
        cell = Cell(record["method"], record["size"], Setting(record["temperature"], top_p=record["top_p"]))
        replies = tuple(CountedReply(*reply) for reply in record["replies"])
        if cell.method not in METHODS or type(cell.size) is not int:
            raise ValueError(f"there is no such cell: {cell}")
        if not replies or not all(reply.contexts > 0 and reply.tokens > 0 for reply in replies):
            raise ValueError("its replies have no contexts")
        return cls(cell, replies)


def kept_cells(file: Path, setup: Mapping[str, Any]) -> dict[Cell, Measured]:
    """The cells that earlier runs left in a file, if it exists; half a line at its end is dropped.

    setup: what all cells have in common. Raises UsageError for the files of another setup or program.
    """
    if not file.exists():
        return {}
    text, kept = file.read_text(encoding="utf-8"), dict[Cell, Measured]()
    complete = text[: text.rfind("\n") + 1]
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            record = json.loads(line)
            if record["record"] == "cell":
                measured = Measured.from_record(record)
                kept[measured.cell] = measured
            elif record["format"] != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            elif differing := [name for name, value in setup.items() if record["setup"][name] != value]:
                name = differing[0]
                there, here = record["setup"][name], setup[name]
                raise UsageError(f"--json {file}: it was measured with {name} {there}, this run has {here}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--json {file}: line {number} is none of this program ({error})") from error
    if complete != text:
        file.write_text(complete, encoding="utf-8")
    return kept


@dataclass(frozen=True)
class Grid:
    """What there is to show: every method, size and setting, and what was measured so far."""

    methods: Sequence[str]
    sizes: Sequence[int]
    settings: Sequence[Setting]
    measured: Mapping[Cell, Measured]

    def at(self, method: str, size: int, setting: Setting) -> Measured | None:
        return self.measured.get(Cell(method, size, setting))
