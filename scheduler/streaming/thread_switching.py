"""Threads that copy get their turn beside Python that computes: a link idles while they wait for the interpreter."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Python lets a thread go on for 5 ms while others wait, in which PCIe 4.0 x16 moves 125 MB and two pieces in flight are
# 32. Beside a thread busy with Python alone, one that sleeps 0.7 ms at a time woke 7 ms late at 5 ms and 0.4 ms late at
# 0.2 ms (medians; two loaded x86-64 cores). Beside calls of torch, which let go of the interpreter, both woke in time.
SWITCH_SECONDS = 0.2e-3

_lock = threading.Lock()
_blocks = 0
_usual = 0.0


@contextmanager
def quick_thread_switching() -> Iterator[None]:
    """For the block, which others may overlap, no thread keeps the interpreter for long while another wants it."""
    global _blocks, _usual
    with _lock:
        if not _blocks:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, SWITCH_SECONDS))
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                sys.setswitchinterval(_usual)
