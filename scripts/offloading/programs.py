"""The programs, and one run of any of them in a process of its own."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from offloading.job import Job, Outcome

SECONDS = 600  # that a run may take
_VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


PROGRAMS = {"ours": None, "accelerate": "accelerate", "airllm": "airllm"}
"""The packages that programs are installed as; None for ours."""
SCRIPT = Path(__file__).resolve().parent / "runs.py"


@dataclass(frozen=True)
class Failure:
    """Why there is no outcome, in one line."""

    reason: str

    @property
    def in_short(self) -> str:
        return self.reason


def missing(name: str, python: Path) -> str | None:
    """How to install a program that `python` has not; None where it has it."""
    package = PROGRAMS[name]
    if package is None:
        return None
    asked = subprocess.run([python, "-c", _VERSION, package], capture_output=True, text=True)
    return f"not installed: pip install {package}" if asked.returncode else None


def run(name: str, python: Path, job: Job) -> Outcome | Failure:
    """Run a program to its end. What it prints is shown only as the reason where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        job_file, outcome_file, log = (Path(directory) / part for part in ("job", "outcome", "log"))
        job.write(job_file)
        command: list[str | Path] = [python, SCRIPT, job_file, outcome_file, name]
        with log.open("w") as output:
            try:
                code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=SECONDS).returncode
            except subprocess.TimeoutExpired:
                return Failure(f"failed: no result after {SECONDS} s")
        if code or not outcome_file.exists():
            return Failure(f"failed ({code}): {_last_line(log)}")
        return Outcome.read(outcome_file)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def this_python() -> Path:
    """The interpreter that runs this, symbolic links not followed: they are what makes a virtual environment."""
    return Path(sys.executable)
