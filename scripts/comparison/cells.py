"""The cells of the comparison, and what was measured of one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

MOST_DEPTH = 63
REFERENCE = "sequoia"


@dataclass(frozen=True)
class Method:
    """A row of the comparison: arguments of `OffloadRuntime.from_pretrained`, and what they mean.

    repeatable: what it does follows from the models' laws and the seed; no clock decides. is_damped: its tree is made
    for damped acceptances, which the runtime does only where it chooses the tree itself.
    """

    tree: str
    verification: str
    meaning: str
    repeatable: bool = True
    is_damped: bool = False


METHODS = {
    "plain": Method("none", "match", "no draft"),
    "chain": Method("chain", "top-down", "one chain (speculative decoding)"),
    "chains": Method("chains", "top-down", "k chains from the root, drawn without replacement"),
    "specinfer": Method("specinfer", "multi-round", "k chains drawn with replacement, SpecInfer's rule"),
    "topk": Method("topk", "match", "Sequoia's tree filled with the likeliest tokens"),
    "sequoia": Method("sequoia", "top-down", "Sequoia's static tree and rule"),
    "sequoia-traversal": Method("sequoia", "traversal", "Sequoia's static tree, verified from its leaves up"),
    "sequoia-damped": Method(
        "sequoia", "traversal", "the deeper static tree that auto makes; with --same-contexts", is_damped=True
    ),
    "adaptive": Method("adaptive", "traversal", "a tree grown for the text, verified from its leaves up"),
    "auto": Method("auto", "auto", "what the runtime takes to be fastest; with seeds of its own", repeatable=False),
}


@dataclass(frozen=True)
class Setting:
    """How tokens are sampled. At temperature 0 top_p changes nothing and is 1."""

    temperature: float
    top_p: float

    def __str__(self) -> str:
        return f"temperature {self.temperature:g}" + (f", top-p {self.top_p:g}" if self.temperature else "")


@dataclass(frozen=True)
class Cell:
    """One method with trees of at most `size` nodes, root included, and `depth` levels, under one sampling.

    driver: the method in whose replies it drafts without writing them; None where it writes its own.
    """

    method: str
    size: int
    depth: int
    temperature: float
    top_p: float
    driver: str | None = None

    @property
    def setting(self) -> Setting:
        return Setting(self.temperature, self.top_p)

    def __str__(self) -> str:
        contexts = f", in contexts of {self.driver}" if self.driver else ""
        return f"{self.method}, {self.size} nodes, {self.setting}{contexts}"


@dataclass(frozen=True)
class CountedReply:
    """prompt: its number. tokens: those of the text; passes: of the target.

    beyond_end: tokens that the last pass accepted behind the text's end token, and that nobody sees. In a reply that
    another method writes, passes are the contexts in it, and tokens the sum of what they yield on average.
    """

    prompt: int
    seed: int
    tokens: float
    passes: int
    beyond_end: int


@dataclass(frozen=True)
class Measured:
    """What was measured of a cell. Seconds are sums over `timed_passes`: all but the first of every reply."""

    cell: Cell
    replies: tuple[CountedReply, ...]
    timed_passes: int
    draft_seconds: float
    target_seconds: float

    @property
    def tokens(self) -> float:
        return sum(reply.tokens for reply in self.replies)

    @property
    def passes(self) -> int:
        return sum(reply.passes for reply in self.replies)

    def with_tokens_beyond_end(self) -> "Measured":
        """The same with every last pass counted whole, as if no text had ended."""
        whole = (replace(reply, tokens=reply.tokens + reply.beyond_end) for reply in self.replies)
        return replace(self, replies=tuple(whole))

    def as_record(self) -> dict[str, Any]:
        """A JSON line; `from_record` reads it back. Replies are lists in the order of `CountedReply`."""
        times = {name: getattr(self, name) for name in ("timed_passes", "draft_seconds", "target_seconds")}
        replies = [list(astuple(reply)) for reply in self.replies]
        return {"record": "cell", **asdict(self.cell), **times, "replies": replies}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Measured":
        """ValueError, KeyError or TypeError where it is no such record."""
        numbers = (record["size"], record["depth"], record["temperature"], record["top_p"])
        cell = Cell(str(record["method"]), *numbers, record.get("driver"))
        if (
            cell.method not in METHODS
            or cell.driver not in (None, *METHODS)
            or not all(isinstance(value, int | float) for value in numbers)
        ):
            raise ValueError(f"there is no such cell: {cell}")
        replies = tuple(CountedReply(*reply) for reply in record["replies"])
        if not replies or not all(reply.passes > 0 and reply.tokens > 0 for reply in replies):
            raise ValueError("its replies have no passes")
        times = (float(record[name]) for name in ("draft_seconds", "target_seconds"))
        return cls(cell, replies, int(record["timed_passes"]), *times)


def settings(temperatures: Iterable[float], top_ps: Iterable[float]) -> list[Setting]:
    """Every temperature with every top-p; temperature 0 once."""
    pairs = (Setting(t, p if t else 1.0) for t in temperatures for p in top_ps)
    return list(dict.fromkeys(pairs))


def cells(
    methods: Iterable[str], sizes: Iterable[int], depth: int, kinds: Iterable[Setting], driver: str | None = None
) -> Iterator[Cell]:
    """All cells, by size, then method, then setting: what loads the same way follows one another."""
    kinds = list(kinds)
    methods = list(methods)
    all_cells = (cell(method, size, depth, kind, driver) for size in sizes for method in methods for kind in kinds)
    return iter(dict.fromkeys(all_cells))


def cell(method: str, size: int, depth: int, setting: Setting, driver: str | None = None) -> Cell:
    """The cell that stands for these limits: a chain ends at the depth limit, and plain decoding has no tree.

    In contexts of a driver they stay as they are, for those depend on the size of the driver's tree.
    """
    depth = min(depth, size - 1)
    if driver is not None:
        return Cell(method, size, depth, setting.temperature, setting.top_p, driver)
    if method == "plain":
        size, depth = 1, 0
    if method == "chain":
        size = min(size, depth + 1)
    return Cell(method, size, depth, setting.temperature, setting.top_p)
