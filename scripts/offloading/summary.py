"""The figures of every program over its rounds, and the table of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latency.records import percentile
from latency.report import write_bytes, write_seconds

from offloading.job import Outcome
from offloading.programs import Failure

COLUMNS = {
    "program": "ours decodes plainly, without a draft",
    "s/pass": "seconds of a pass of one token, every pass cold, median over passes and rounds",
    "spread": "fastest and slowest pass",
    "x ours": "the median over ours",
    "least x": "the least of that quotient within one round, whose runs follow each other",
    "first s": "seconds of the cold pass over the prompt, which also pays for what a program does once; median",
    "load s": "seconds to load, least over the rounds: at its first start AirLLM also writes its files",
    "writes": "bytes of files that a program makes of the model's before it can run",
    "cached": "most bytes of the model that were in the page cache as a pass of one token began: what stays mapped",
    "host": "most resident memory, file pages that are mapped included",
    "tokens": "whether the greedy tokens are ours",
}


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
        return percentile(self.pass_seconds, 50)


def figures(runs: Runs, ours: Runs) -> dict[str, Any]:
    """Of one program; None where there is nothing to say."""
    outcomes, seconds = list(runs.outcomes.values()), runs.pass_seconds
    ratios = [
        theirs / own
        for number, outcome in runs.outcomes.items()
        if number in ours.outcomes
        and (theirs := percentile(outcome.pass_seconds, 50))
        and (own := percentile(ours.outcomes[number].pass_seconds, 50))
    ]
    return {
        "program": runs.program,
        "failure": runs.failure,
        "versions": outcomes[0].versions if outcomes else None,
        "passes": len(seconds),
        "pass_seconds": runs.median,
        "pass_seconds_least": min(seconds, default=None),
        "pass_seconds_most": max(seconds, default=None),
        "times_ours": runs.median / ours.median if runs.median and ours.median and runs is not ours else None,
        "times_ours_by_round": ratios if runs is not ours else None,
        "first_seconds": percentile([outcome.first_seconds for outcome in outcomes], 50),
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
        computing = [outcome.compute_seconds for outcome in ours.outcomes.values()]
        read = next((outcome.read_bytes for outcome in ours.outcomes.values()), None)
        compute = percentile(computing, 50)
        return cls(disk, read, compute) if read and compute else None

    @property
    def read_seconds(self) -> float:
        """At the best bandwidth measured, so that a slow measurement never flatters."""
        return self.read_bytes / max(self.disk)

    @property
    def seconds(self) -> float:
        return max(self.read_seconds, self.compute_seconds)

    @property
    def figures(self) -> dict[str, Any]:
        derived = {"seconds": self.seconds, "read_seconds": self.read_seconds}
        return {**derived, "compute_seconds": self.compute_seconds, "disk_bytes_per_second": list(self.disk)}

    def ratio(self, ours: Runs) -> float:
        """The median pass over it."""
        assert ours.median is not None
        return ours.median / self.seconds


def limit_lines(limit: Limit, ours: Runs) -> Iterator[str]:
    """How far ours is from what is possible."""
    rates = f"{write_bytes(min(limit.disk))}/s to {write_bytes(max(limit.disk))}/s"
    yield f"disk: {rates} in {len(limit.disk)} measurements between the runs, past the page cache"
    yield (
        f"ours: {write_bytes(limit.read_bytes)} read per pass, {write_seconds(limit.read_seconds)} s at the best of "
        f"these; computing alone {write_seconds(limit.compute_seconds)} s; the median pass takes "
        f"{limit.ratio(ours):.2f} x the larger of the two"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown, the meaning of every column below it."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"| --- |{' ---: |' * (len(COLUMNS) - 1)}"
    for row in rows:
        yield f"| {' | '.join(_cells(row))} |"
    yield ""
    for row in rows:
        if row["failure"]:
            yield f"- {row['program']}: {row['failure']}"
        elif row["versions"]:
            yield f"- {row['program']}: {', '.join(f'{name} {number}' for name, number in row['versions'].items())}"
    yield ""
    for title, meaning in COLUMNS.items():
        yield f"- {title}: {meaning}"


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    def write(value: Any, form: Any) -> str:
        return "-" if value is None else form(value)

    yield row["program"]
    yield write(row["pass_seconds"], write_seconds)
    spread = row["pass_seconds_least"]
    yield "-" if spread is None else f"{write_seconds(spread)} to {write_seconds(row['pass_seconds_most'])}"
    yield write(row["times_ours"], "{:.2f}".format)
    yield write(min(row["times_ours_by_round"] or [], default=None), "{:.2f}".format)
    yield write(row["first_seconds"], write_seconds)
    yield write(row["load_seconds"], write_seconds)
    for name in ("written_bytes", "cached_bytes", "peak_host_bytes"):
        yield write(row[name], write_bytes)
    yield write(row["same_tokens"], lambda same: "equal" if same else "differ")
