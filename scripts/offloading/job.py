"""What a program is asked to run, and what it reports: JSON files between processes. Standard library only.

Programs may live in virtual environments of their own, so what they import from here needs nothing else.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One program's run over one model.

    tokens: of the prompt. passes: of one token each, after that of the prompt. dtype: to compute in.
    streamed_layers: that lie on disk between passes, where a program can be told. device_memory: bytes.
    directory: for files the program needs, kept between its runs.
    """

    model: str
    tokens: list[int]
    passes: int
    dtype: str
    streamed_layers: list[int]
    device_memory: int
    directory: str

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.tokens) + self.passes + 1

    @property
    def files(self) -> list[Path]:
        """The model's weights, and what the program has written for itself."""
        own = [path for path in sorted(Path(self.directory).rglob("*")) if path.is_file() and not path.is_symlink()]
        return [*sorted(Path(self.model).glob("*.safetensors")), *own]

    @classmethod
    def read(cls, file: str) -> "Job":
        return cls(**json.loads(Path(file).read_text()))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))


@dataclass
class Outcome:
    """One run of a program. Seconds by the clock on the wall; bytes.

    load_seconds: from the model's files to a model that can run, imports left out. first_seconds: of the pass over the
    prompt. pass_seconds: of every later pass, from token to token. token_ids: that the passes ended in.
    cached_bytes: of `Job.files` in the page cache as the passes began. written_bytes: of files made of the model's.
    compute_seconds: of a pass while nothing is read. read_bytes: from disk in one pass, where the program says.
    """

    versions: dict[str, str]
    load_seconds: float
    token_ids: list[int]
    first_seconds: float
    pass_seconds: list[float]
    cached_bytes: list[int] = field(default_factory=list)
    written_bytes: int = 0
    peak_host_bytes: int = 0
    compute_seconds: float | None = None
    read_bytes: int | None = None

    @property
    def in_short(self) -> str:
        return f"passes of {', '.join(f'{seconds:.2f}' for seconds in self.pass_seconds)} s"

    @classmethod
    def read(cls, file: Path) -> "Outcome":
        return cls(**json.loads(file.read_text()))

    def write(self, file: str) -> None:
        Path(file).write_text(json.dumps(asdict(self)))


def written_bytes(job: Job) -> int:
    """Of the files that a program keeps beside the model's own."""
    return sum(file.stat().st_size for file in job.files) - sum(
        file.stat().st_size for file in Path(job.model).glob("*.safetensors")
    )
