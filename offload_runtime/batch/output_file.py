"""A job's output: one line for every answered line of the input, appended whole. Imports no torch.

The file itself says how far the job is, so that a kill at any moment leaves a state from which it goes on: each line
begins with the key of the line that it answers, and only the last one can be torn.
"""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from loaders.json_files import parse_object
from offload_runtime.batch.job_input import JobInput
from offload_runtime.batch.keys import FoundKey, may_be_begun
from offload_runtime.errors import UsageError

SYNC_SECONDS = 5.0  # replies of so long can be lost where the power goes; a kill loses none
_MOST_BYTES = 1 << 30  # of a line; far above what a context holds


class OutputFile:
    """A context manager. done: the numbers of the lines that have an answer. failed: how many of these are errors.

    Raises UsageError where the file cannot be written, is the input, or holds anything but answers to this job's
    lines; it is unchanged then.
    """

    def __init__(self, path: Path, job: JobInput):
        self.path = path
        self.done: set[int] = set()
        self.failed = 0
        self._job = job
        self._synced_at = time.monotonic()
        self._descriptor = _opened(path, job.path)
        try:
            _lock(self._descriptor, path)
            self._end = self._read_answers()
            os.ftruncate(self._descriptor, self._end)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def left(self) -> int:
        """How many lines have no answer yet."""
        return len(self._job) - len(self.done)

    def append(self, index: int, line: bytes, failed: bool = False) -> None:
        """Write the answer to a line of input, unless it has one.

        Raises OSError, after which what was begun is taken back, and UsageError if others have changed the file.
        """
        if index in self.done:
            return
        self._check_untouched()
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            if time.monotonic() - self._synced_at >= SYNC_SECONDS:
                self._sync()
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(line)
        self.done.add(index)
        self.failed += failed

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._sync()
        finally:
            os.close(self._descriptor)

    def _check_untouched(self) -> None:
        """An editor that saves the file, for example, puts another in its place, which would get no more answers."""
        status = os.fstat(self._descriptor)
        if not status.st_nlink or status.st_size != self._end:
            what = "changed" if status.st_nlink else "removed or replaced"
            raise UsageError(
                f"--output {self.path} was {what} while the job ran.\n  start again: what is missing in it is done then"
            )

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced_at = time.monotonic()

    def _read_answers(self) -> int:
        """Note what is answered; return where the whole lines end."""
        end = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            number = 0
            while line := file.readline(_MOST_BYTES):
                number += 1
                if not line.endswith(b"\n"):
                    if line.strip(b"\0") and not may_be_begun(line):
                        raise self._foreign(number)
                    break
                self._read_answer(line, number)
                end += len(line)
        return end

    def _read_answer(self, line: bytes, number: int) -> None:
        found, job = FoundKey.at_start_of(line), self._job
        if found is None:
            raise self._foreign(number)
        ours, digests = found.job == job.forms.keys, job.digests
        unchanged = found.index < len(digests) and digests[found.index] == found.digest
        if not (ours and unchanged):
            raise self._of_another_job(found, number, unchanged)
        if found.index in self.done:
            raise UsageError(
                f"--output {self.path}: line {number} answers line {found.index + 1} of the input a second time: was "
                "it written to by something else? Remove that line to go on, or choose another --output"
            )
        try:
            fields = parse_object(line)
        except ValueError as error:
            raise UsageError(
                f"--output {self.path}: line {number} is damaged: {error}.\n"
                "  remove that line: what it answered is then done again"
            ) from error
        self.done.add(found.index)
        self.failed += fields.get("error") is not None

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"--output {self.path} holds something else: its line {number} is not an answer that this program wrote. "
            "It was left as it is; choose another --output"
        )

    def _of_another_job(self, found: FoundKey, number: int, unchanged: bool) -> UsageError:
        keys = self._job.forms.keys
        others = [
            *(["another model, adapter, quantization or chat template"] if found.job.model != keys.model else []),
            *(["other sampling options"] if found.job.sampling != keys.sampling else []),
        ]
        if unchanged:
            return UsageError(
                f"--output {self.path} was begun with {' and '.join(others)}: its replies and the missing ones would "
                "not go together.\n"
                "  the options of that job      go on with it\n"
                f"  --output OTHER{self.path.suffix}         begins a new one"
            )
        if others:
            return UsageError(
                f"--output {self.path} holds the answers of another job: line {number} answers other input, with "
                f"{' and '.join(others)}. It was left as it is; choose another --output"
            )
        return UsageError(
            f"--output {self.path} answers an input that has changed since: line {found.index + 1} of "
            f"{self._job.path} is not what it was (line {number} of the output).\n"
            "  put the old line back to go on; new lines can be added at the end\n"
            f"  --output OTHER{self.path.suffix}   begins a new job"
        )


def _opened(path: Path, job_input: Path) -> int:
    """The descriptor of a file that may be read and appended to; made if it is not there."""
    try:
        if path.exists():
            if path.samefile(job_input):
                raise UsageError(f"--output {path} is the input itself: choose another file")
            if not stat.S_ISREG(path.stat().st_mode):
                raise UsageError(f"--output {path} is not a regular file: an interrupted job finds its replies there")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = f"{path.parent} is not there" if error.errno == errno.ENOENT else error.strerror
        raise UsageError(f"--output {path}: cannot be written ({reason})") from error
    with suppress(OSError):  # where directories can be synced, the name of a new file outlives a loss of power, too
        _sync_directory(path.parent)
    return descriptor


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Keep a second process from writing. The system takes the lock back when this process ends in whatever way."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"--output {path}: another process is writing it. Wait for that one, or stop it") from error
    except OSError as error:  # some network file systems have no locks
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
