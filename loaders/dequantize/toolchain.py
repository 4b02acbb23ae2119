"""Whether Triton can start here: it compiles a small C module against Python.h before it launches its first kernel.

Checks the files alone, as Triton looks for them, without importing it or torch, since plans use it.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

# Commands that install a C compiler and Python's headers, by distribution; {} is the name of the Python package.
INSTALL = {
    "debian": "sudo apt install gcc {}-dev",
    "fedora": "sudo dnf install gcc {}-devel",
    "suse": "sudo zypper install gcc {}-devel",
    "arch": "sudo pacman -S gcc",  # its Python package includes the headers
}


@lru_cache(maxsize=1)
def why_no_kernels() -> str | None:
    """What Triton lacks here, and the command that installs it, in one line; None if nothing."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    lacking = list(_lacking())
    return f"Triton lacks {' and '.join(lacking)} ({_install()})" if lacking else None


def _lacking() -> Iterator[str]:
    if not _has_compiler():
        yield "a C compiler"
    if not (_include_directory() / "Python.h").is_file():
        yield "Python.h"


def _has_compiler() -> bool:
    """The C compiler: $CC, else gcc or clang."""
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return any(shutil.which(name) for name in names)


def _include_directory() -> Path:
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's path, which has no headers
        scheme = "posix_prefix"
    return Path(sysconfig.get_paths(scheme=scheme)["include"])


def _install() -> str:
    """The install command for the running Python: one that is not the system's has its own package."""
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    name = "python3" if python == Path("/usr/bin/python3").resolve() else f"python3.{sys.version_info.minor}"
    command = next((INSTALL[family] for family in _families() if family in INSTALL), "install gcc and Python's headers")
    return command.format(name)


def _families() -> list[str]:
    """The distribution and those it derives from: "ubuntu", "debian"."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return []
    return [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
