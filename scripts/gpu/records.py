"""What is measured. Every record is one line of the report; seconds, bytes and bytes per second throughout."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """`section`: the letter of the section that measured it."""

    section: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it, with the kind of record."""
        return {"record": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Missing(Record):
    """Something that was not measured: by choice ("skipped", "out of time") or because it failed ("failed")."""

    what: str
    why: str
    reason: str


@dataclass(frozen=True)
class Bandwidth(Record):
    """One path: "host to device, pinned", "host to device, pageable", or "disk"."""

    path: str
    bytes_per_second: float


@dataclass(frozen=True)
class StreamedPass(Record):
    """A pass of the target over a tree of `nodes` nodes, with the device capped to `cap` bytes.

    seconds: mean of `passes` passes in a row, one before them not counted. link_seconds: its bytes over the bandwidth
    measured just before. compute_seconds: the same pass with nothing streaming. predicted_seconds: by the plan, before
    it ran; None where the plan makes no prediction.
    """

    shape: str
    cap: int
    resident_layers: int
    streamed_layers: int
    nodes: int
    streamed_bytes: int
    seconds: float
    passes: int
    link_bytes_per_second: float | None
    link_seconds: float | None
    compute_seconds: float
    predicted_seconds: float | None
    peak_device_bytes: int

    @property
    def roofline_seconds(self) -> float:
        """The larger of streaming alone and computing alone."""
        return max(self.link_seconds or 0.0, self.compute_seconds)

    @property
    def ratio(self) -> float:
        """Measured over roofline."""
        return self.seconds / self.roofline_seconds

    @property
    def predicted_ratio(self) -> float | None:
        """Predicted over measured."""
        return self.predicted_seconds / self.seconds if self.predicted_seconds else None

    def as_dict(self) -> dict[str, Any]:
        derived = ("roofline_seconds", "ratio", "predicted_ratio")
        return {**super().as_dict(), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class FirstToken(Record):
    """Until the host has the first token after a prompt that nothing is known of, with the device capped to `cap`.

    passes: that the prompt was read in. pass_seconds: of a streamed pass over one token, measured next.
    """

    cap: int
    prompt_tokens: int
    passes: int
    seconds: float
    pass_seconds: float


@dataclass(frozen=True)
class Unpacking(Record):
    """Decoding a matrix to `nbytes` of bfloat16: by the fused kernel, None where there is none, and in plain torch."""

    form: str
    rows: int
    columns: int
    nbytes: int
    fused_seconds: float | None
    plain_seconds: float


@dataclass(frozen=True)
class DraftLevel(Record):
    """One level of a draft: `rows` nodes, the median of `runs`. graphs: replayed as a CUDA graph."""

    shape: str
    rows: int
    graphs: bool
    seconds: float
    runs: int
    predicted_seconds: float | None


@dataclass(frozen=True)
class Decoding(Record):
    """Replies to the same prompts in one mode. outputs: how they compare with those of `reference`.

    seconds_per_token: of what comes after each reply's first step. equal_tokens: leading tokens that agree, of all
    replies together; `compared` is how many could.
    """

    what: str
    mode: str
    dtype: str
    temperature: float
    tokens: int
    passes: int
    tokens_per_pass: float
    seconds_per_token: float
    seconds_to_first_token: float
    draft_seconds: float
    target_seconds: float
    streamed_bytes: int
    reference: str | None = None
    equal_tokens: int | None = None
    compared: int | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class Offloading(Record):
    """A pass over one token by one program, on the same layers under the same placement."""

    program: str
    layers: int
    streamed_layers: int
    streamed_bytes: int
    seconds: float
    passes: int
    load_seconds: float
    same_token: bool | None = None
    times_slower: float | None = None
