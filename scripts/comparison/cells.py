"""The cells of the comparison, and what was measured of one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from offload_runtime.speculation.acceptance_store import Setting

MOST_DEPTH = 63
REFERENCE = "sequoia"


@dataclass(frozen=True)
class Method:
    """A row of the comparison: arguments of `OffloadRuntime.from_pretrained`, and what they mean.

    repeatable: what it does follows from the models' distributions and the seed; no clock decides. automatic: its tree
    is the static one that the runtime makes where it chooses the tree itself.
    """

    tree: str
    verification: str
    meaning: str
    repeatable: bool = True
    automatic: bool = False


METHODS = {
    "plain": Method("none", "match", "no draft"),
    "chain": Method("chain", "top-down", "one chain (speculative decoding)"),
    "chains": Method("chains", "top-down", "k chains from the root, drawn without replacement"),
    "specinfer": Method("specinfer", "multi-round", "k chains drawn with replacement, SpecInfer's rule"),
    "topk": Method("topk", "match", "Sequoia's tree filled with the likeliest tokens"),
    "sequoia": Method("sequoia", "top-down", "Sequoia's static tree and rule"),
    "sequoia-traversal": Method("sequoia", "traversal", "Sequoia's static tree, verified from its leaves up"),
    "sequoia-damped": Method(
        "sequoia", "traversal", "the deeper static tree that auto makes; with --same-contexts", automatic=True
    ),
    "adaptive": Method("adaptive", "traversal", "a tree grown for the text, verified from its leaves up"),
    "auto": Method("auto", "auto", "what the runtime takes to be fastest; with seeds of its own", repeatable=False),
}


def named(setting: Setting) -> str:
    """A setting as tables call it."""
    return f"temperature {setting.temperature:g}" + (f", top-p {setting.top_p:g}" if setting.temperature else "")


@dataclass(frozen=True)
class Cell:
    """One method with trees of at most `size` nodes, root included, and `depth` levels, under one sampling.

    driver: the method in whose replies it drafts without writing them; None where it writes its own.
    """

    method: str
    size: int
    depth: int
    setting: Setting
    driver: str | None = None

    def __str__(self) -> str:
        contexts = f", in contexts of {self.driver}" if self.driver else ""
        return f"{self.method}, {self.size} nodes, {named(self.setting)}{contexts}"


@dataclass(frozen=True)
class CountedReply:
    """prompt: its number. tokens: those of the text; passes: of the target.

    In a reply that another method writes, passes are the contexts in it, and tokens the sum of what they yield on
    average.
    """

    prompt: int
    seed: int
    tokens: float
    passes: int


@dataclass(frozen=True)
class Measured:
    """What was measured of a cell. Seconds are sums over `timed_passes`: all but the first of every reply."""

    cell: Cell
    replies: tuple[CountedReply, ...]
    timed_passes: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0

    @property
    def tokens(self) -> float:
        return sum(reply.tokens for reply in self.replies)

    @property
    def passes(self) -> int:
        return sum(reply.passes for reply in self.replies)

    def as_record(self) -> dict[str, Any]:
        """A JSON line; `from_record` reads it back. Replies are lists in the order of `CountedReply`."""
        values = asdict(self)
        cell = values.pop("cell")
        setting = cell.pop("setting")
        sampling = {name: setting[name] for name in ("temperature", "top_p")}
        return {**cell, **sampling, **values, "replies": [list(astuple(reply)) for reply in self.replies]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Measured":
        """ValueError, KeyError or TypeError where it is no such record."""
        setting = Setting(record["temperature"], top_p=record["top_p"])
        method, size, depth, driver = (record.get(name) for name in ("method", "size", "depth", "driver"))
        if method not in METHODS or driver not in (None, *METHODS) or not (type(size) is type(depth) is int):
            raise ValueError(f"there is no such cell: {method}, {size} nodes")
        replies = tuple(CountedReply(*reply) for reply in record["replies"])
        if not replies or not all(reply.passes > 0 and reply.tokens > 0 for reply in replies):
            raise ValueError("its replies have no passes")
        times = (float(record[name]) for name in ("draft_seconds", "target_seconds"))
        return cls(Cell(method, size, depth, setting, driver), replies, int(record["timed_passes"]), *times)


def settings(temperatures: Iterable[float], top_ps: Iterable[float]) -> list[Setting]:
    """Every temperature with every top-p; temperature 0 once."""
    top_ps = list(top_ps)
    return list(dict.fromkeys(Setting(temperature, top_p=top_p) for temperature in temperatures for top_p in top_ps))


def cells(
    methods: Iterable[str], sizes: Iterable[int], depth: int, kinds: Iterable[Setting], driver: str | None = None
) -> Iterator[Cell]:
    """All cells, by size, then method, then setting: what loads the same way follows one another."""
    kinds, methods = list(kinds), list(methods)
    every = (cell(method, size, depth, kind, driver) for size in sizes for method in methods for kind in kinds)
    return iter(dict.fromkeys(every))


def cell(method: str, size: int, depth: int, setting: Setting, driver: str | None = None) -> Cell:
    """The cell that stands for these limits: a chain ends at the depth limit, and plain decoding has no tree.

    In contexts of a driver they stay as they are, for those depend on the size of the driver's tree.
    """
    depth = min(depth, size - 1)
    if driver is None and method == "plain":
        size, depth = 1, 0
    elif driver is None and method == "chain":
        size = min(size, depth + 1)
    return Cell(method, size, depth, setting, driver)
