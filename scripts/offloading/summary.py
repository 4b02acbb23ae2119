"""The figures of every program over its rounds, and the table of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from toolkit.output import Column, Row, legend, nbytes, seconds, table_of
from toolkit.replies import percentile

from offloading.job import Outcome

Results = Mapping[str, Sequence[Outcome | str]]
"""Of every program and round the outcome, or why there is none."""
COLUMNS = (
    Column("program", "program", str, "ours decodes plainly, without a draft"),
    Column("s/pass", "pass_seconds", seconds, "of one token, every pass cold, median over passes and rounds"),
    Column("spread", "pass_spread", lambda ends: " to ".join(map(seconds, ends)), "fastest and slowest pass"),
    Column("x ours", "times_ours", ".2f", "the median over ours"),
    Column("least x", lambda row: min(row["times_ours_by_round"] or (), default=None), ".2f",
           "of that quotient within one round, whose runs follow each other"),
    Column("first s", "first_seconds", seconds, "the pass over the prompt, with what a program does once; median"),
    Column("load s", "load_seconds", seconds, "least over the rounds: at its first start AirLLM also writes its files"),
    Column("writes", "written_bytes", nbytes, "files that a program makes of the model's before it can run"),
    Column("cached", "cached_bytes", nbytes,
           "of the model in the page cache as a pass began, at most: what stays mapped"),
    Column("host", "peak_host_bytes", nbytes, "most resident memory, file pages that are mapped included"),
    Column("tokens", "same_tokens", lambda same: "equal" if same else "differ", "whether the greedy tokens are ours"),
)  # fmt: skip


def figures(name: str, results: Results) -> dict[str, Any]:
    """Of one program; None where there is nothing to say. Rounds that failed are left out."""
    runs, ours = ({n: one for n, one in enumerate(results.get(key, ())) if isinstance(one, Outcome)}
                  for key in (name, "ours"))  # fmt: skip
    outcomes, passes = [*runs.values()], [seconds for run in runs.values() for seconds in run.pass_seconds]
    own = [seconds for run in ours.values() for seconds in run.pass_seconds]
    compared = [(run, ours[number]) for number, run in runs.items() if number in ours and name != "ours"]
    return {
        "program": name,
        "failure": next((one for one in results[name] if isinstance(one, str)), None),
        "versions": outcomes[0].versions if outcomes else None,
        "passes": len(passes),
        "pass_seconds": percentile(passes),
        "pass_spread": (min(passes), max(passes)) if passes else None,
        "times_ours": median(passes) / median(own) if compared else None,
        "times_ours_by_round": [median(run.pass_seconds) / median(our.pass_seconds) for run, our in compared],
        "first_seconds": percentile([outcome.first_seconds for outcome in outcomes]),
        "load_seconds": min((outcome.load_seconds for outcome in outcomes), default=None),
        "written_bytes": max((outcome.written_bytes for outcome in outcomes), default=None),
        "cached_bytes": max((cached for outcome in outcomes for cached in outcome.cached_bytes[1:]), default=None),
        "peak_host_bytes": max((outcome.peak_host_bytes for outcome in outcomes), default=None),
        "same_tokens": all(run.token_ids == our.token_ids for run, our in compared) if compared else None,
    }


@dataclass(frozen=True)
class Limit:
    """What a pass of ours cannot be faster than, and its median. disk: bytes per second, of every measurement."""

    disk: Sequence[float]
    read_bytes: int
    compute_seconds: float
    pass_seconds: float

    @classmethod
    def of(cls, disk: Sequence[float], ours: Sequence[Outcome | str]) -> "Limit | None":
        """None where ours has not run."""
        outcomes = [outcome for outcome in ours if isinstance(outcome, Outcome)]
        if not outcomes or outcomes[0].read_bytes is None:
            return None
        computing = median(outcome.compute_seconds or 0.0 for outcome in outcomes)
        passes = median(seconds for outcome in outcomes for seconds in outcome.pass_seconds)
        return cls(disk, outcomes[0].read_bytes, computing, passes)

    def figures(self) -> dict[str, Any]:
        """Of a JSON line. Reading is priced at the best bandwidth, so that a slow measurement never flatters."""
        read = self.read_bytes / max(self.disk)
        limit = max(read, self.compute_seconds)
        figures = {"seconds": limit, "read_seconds": read, "ratio": self.pass_seconds / limit}
        return {**figures, "compute_seconds": self.compute_seconds, "disk_bytes_per_second": list(self.disk)}

    def lines(self) -> Iterator[str]:
        """How far ours is from what is possible."""
        found, rates = self.figures(), f"{nbytes(min(self.disk))}/s to {nbytes(max(self.disk))}/s"
        yield f"disk: {rates} in {len(self.disk)} measurements between the runs, past the page cache"
        read = f"{nbytes(self.read_bytes)} read per pass, {seconds(found['read_seconds'])} s at the best of these"
        yield (
            f"ours: {read}; computing alone {seconds(self.compute_seconds)} s; the median pass takes "
            f"{found['ratio']:.2f} x the larger of the two"
        )


def program_table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, the meaning of every column below it."""
    yield from table_of(COLUMNS, rows)
    yield ""
    for row in rows:
        versions = ", ".join(f"{name} {number}" for name, number in (row["versions"] or {}).items())
        yield f"- {row['program']}: {row['failure'] or versions}"
    yield ""
    yield from legend(COLUMNS)
