"""Host memory of this process, and the most it held since a moment that can be chosen."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what the kernel wants to hear: proc(5)


def host_bytes() -> int:
    """Resident memory now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak_host_bytes() -> None:
    """Let the peak start from what is held now, where the system can; elsewhere it counts from the process's start."""
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def peak_host_bytes() -> int:
    """The most resident memory since the peak was reset."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
