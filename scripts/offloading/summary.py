"""The figures of every program over its rounds, and the table of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.output import Column, cells, legend, nbytes, seconds, table, written
from toolkit.replies import percentile

from offloading.job import Outcome
from offloading.programs import Failure


def _spread(ends: Sequence[float]) -> str:
    return " to ".join(map(seconds, ends))


def _least(ratios: Sequence[float]) -> str:
    return written(min(ratios, default=None), ".2f")


COLUMNS = (
    Column("program", "program", str, "ours decodes plainly, without a draft"),
    Column("s/pass", "pass_seconds", seconds, "of one token, every pass cold, median over passes and rounds"),
    Column("spread", "pass_spread", _spread, "fastest and slowest pass"),
    Column("x ours", "times_ours", ".2f", "the median over ours"),
    Column("least x", "times_ours_by_round", _least, "of that quotient within one round, whose runs follow each other"),
    Column("first s", "first_seconds", seconds, "the pass over the prompt, with what a program does once; median"),
    Column("load s", "load_seconds", seconds, "least over the rounds: at its first start AirLLM also writes its files"),
    Column("writes", "written_bytes", nbytes, "files that a program makes of the model's before it can run"),
    Column(
        "cached", "cached_bytes", nbytes, "of the model in the page cache as a pass began, at most: what stays mapped"
    ),
    Column("host", "peak_host_bytes", nbytes, "most resident memory, file pages that are mapped included"),
    Column("tokens", "same_tokens", lambda same: "equal" if same else "differ", "whether the greedy tokens are ours"),
)


@dataclass(frozen=True)
class Runs:
    """One program's rounds; those that failed are left out and say why in `failure`."""

    program: str
    outcomes: Mapping[int, Outcome]
    failure: str | None = None

    @classmethod
    def of(cls, program: str, results: Sequence[Outcome | Failure]) -> "Runs":
        """From the results of all rounds."""
        outcomes = {number: result for number, result in enumerate(results) if isinstance(result, Outcome)}
        failures = [result.reason for result in results if isinstance(result, Failure)]
        return cls(program, outcomes, failures[0] if failures else None)

    @property
    def pass_seconds(self) -> list[float]:
        return [seconds for outcome in self.outcomes.values() for seconds in outcome.pass_seconds]

    @property
    def median(self) -> float | None:
        return percentile(self.pass_seconds)


def figures(runs: Runs, ours: Runs) -> dict[str, Any]:
    """Of one program; None where there is nothing to say."""
    outcomes, passes = list(runs.outcomes.values()), runs.pass_seconds
    ratios = [
        theirs / own
        for number, outcome in runs.outcomes.items()
        if number in ours.outcomes
        and (theirs := percentile(outcome.pass_seconds))
        and (own := percentile(ours.outcomes[number].pass_seconds))
    ]
    return {
        "program": runs.program,
        "failure": runs.failure,
        "versions": outcomes[0].versions if outcomes else None,
        "passes": len(passes),
        "pass_seconds": runs.median,
        "pass_spread": (min(passes), max(passes)) if passes else None,
        "times_ours": runs.median / ours.median if runs.median and ours.median and runs is not ours else None,
        "times_ours_by_round": ratios if runs is not ours else None,
        "first_seconds": percentile([outcome.first_seconds for outcome in outcomes]),
        "load_seconds": min((outcome.load_seconds for outcome in outcomes), default=None),
        "written_bytes": max((outcome.written_bytes for outcome in outcomes), default=None),
        "cached_bytes": max((cached for outcome in outcomes for cached in outcome.cached_bytes[1:]), default=None),
        "peak_host_bytes": max((outcome.peak_host_bytes for outcome in outcomes), default=None),
        "same_tokens": _same_tokens(runs, ours) if runs is not ours else None,
    }


def _same_tokens(runs: Runs, ours: Runs) -> bool | None:
    """None where there is nothing to compare."""
    own = [outcome.token_ids for outcome in ours.outcomes.values()]
    theirs = [outcome.token_ids for outcome in runs.outcomes.values()]
    return all(tokens == own[0] for tokens in theirs) if own and theirs else None


@dataclass(frozen=True)
class Limit:
    """What a pass of ours cannot be faster than. disk: bytes per second, of every measurement in the run."""

    disk: Sequence[float]
    read_bytes: int
    compute_seconds: float

    @classmethod
    def of(cls, disk: Sequence[float], ours: Runs) -> "Limit | None":
        """None where ours has not run."""
        read = next((outcome.read_bytes for outcome in ours.outcomes.values()), None)
        compute = percentile([outcome.compute_seconds for outcome in ours.outcomes.values()])
        return cls(disk, read, compute) if read and compute else None

    @property
    def read_seconds(self) -> float:
        """At the best bandwidth measured, so that a slow measurement never flatters."""
        return self.read_bytes / max(self.disk)

    @property
    def seconds(self) -> float:
        return max(self.read_seconds, self.compute_seconds)

    def ratio(self, ours: Runs) -> float:
        """The median pass over it."""
        assert ours.median is not None
        return ours.median / self.seconds

    def figures(self, ours: Runs) -> dict[str, Any]:
        """Of a JSON line."""
        derived = {"seconds": self.seconds, "read_seconds": self.read_seconds, "ratio": self.ratio(ours)}
        return {**derived, "compute_seconds": self.compute_seconds, "disk_bytes_per_second": list(self.disk)}


def limit_lines(limit: Limit, ours: Runs) -> Iterator[str]:
    """How far ours is from what is possible."""
    rates = f"{nbytes(min(limit.disk))}/s to {nbytes(max(limit.disk))}/s"
    yield f"disk: {rates} in {len(limit.disk)} measurements between the runs, past the page cache"
    yield (
        f"ours: {nbytes(limit.read_bytes)} read per pass, {seconds(limit.read_seconds)} s at the best of "
        f"these; computing alone {seconds(limit.compute_seconds)} s; the median pass takes "
        f"{limit.ratio(ours):.2f} x the larger of the two"
    )


def program_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown, the meaning of every column below it."""
    yield from table([column.title for column in COLUMNS], [cells(COLUMNS, row) for row in rows])
    yield ""
    for row in rows:
        if row["failure"]:
            yield f"- {row['program']}: {row['failure']}"
        elif row["versions"]:
            yield f"- {row['program']}: {', '.join(f'{name} {number}' for name, number in row['versions'].items())}"
    yield ""
    yield from legend(COLUMNS)
