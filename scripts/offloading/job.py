"""What a program is asked to run, and what it reports: JSON files between processes. Standard library only.

Programs may live in virtual environments of their own, so what they import from here needs nothing else.
"""

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

SECONDS = 600  # that a run may take
SCRIPT = Path(__file__).resolve().parent / "runs.py"
PROGRAMS = {"ours": None, "accelerate": "accelerate", "airllm": "airllm"}
"""The packages that programs are installed as; None for ours."""
_VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


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
    def model_files(self) -> list[Path]:
        return sorted(Path(self.model).glob("*.safetensors"))

    @property
    def own_files(self) -> list[Path]:
        """What the program has written for itself."""
        return [file for file in Path(self.directory).rglob("*") if file.is_file() and not file.is_symlink()]


@dataclass
class Outcome:
    """One run of a program. Seconds by the clock on the wall; bytes.

    load_seconds: from the model's files to a model that can run, imports left out. first_seconds: of the pass over the
    prompt. pass_seconds: of every later pass, from token to token. token_ids: that the passes ended in.
    cached_bytes: of all files in the page cache as the passes began. written_bytes: of files made of the model's.
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


def missing(name: str, python: Path) -> str | None:
    """How to install a program that `python` has not; None where it has it."""
    package = PROGRAMS[name]
    if package is None or subprocess.run([python, "-c", _VERSION, package], capture_output=True).returncode == 0:
        return None
    return f"not installed: pip install {package}"


def run(name: str, python: Path, job: Job) -> Outcome | str:
    """Run a program to its end; in one line why there is no outcome. What it prints is shown only where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        job_file, outcome_file = (Path(directory) / part for part in ("job", "outcome"))
        job_file.write_text(json.dumps(asdict(job)))
        command: list[str | Path] = [python, SCRIPT, job_file, outcome_file, name]
        try:
            ended = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"failed: no result after {SECONDS} s"
        if ended.returncode or not outcome_file.exists():
            said = [line.strip() for line in ended.stdout.splitlines() if line.strip()]
            return f"failed ({ended.returncode}): {said[-1] if said else 'it printed nothing'}"
        return Outcome(**json.loads(outcome_file.read_text()))
