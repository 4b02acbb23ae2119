"""Memory limits of the container this process runs in (Linux control groups, version 1 and 2)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Files:
    """The files in which one version of control groups keeps limit, usage and reclaimable page cache."""

    limit: str
    usage: str
    cache_keys: tuple[str, str]


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_VERSION_2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def container_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """Return (limit, still available) in bytes, the tightest of this group and its parents; None without a limit.

    The group's usage includes page cache. The kernel reclaims that under pressure, so it counts as available here, as
    in the kernel's own MemAvailable. `root`: where /proc and /sys are.
    """
    found = [memory for folder, files in _groups(root) if (memory := _group_memory(folder, files)) is not None]
    if not found:
        return None
    return min(limit for limit, _ in found), min(available for _, available in found)


def _groups(root: Path) -> list[tuple[Path, _Files]]:
    """The folders of this process's memory group and of all its parents that are visible in the mount."""
    listing = _read(root / "proc/self/cgroup")
    folders: list[tuple[Path, _Files]] = []
    for line in (listing or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        # In a container the path may be the host's. Folders that do not exist are skipped; the top always exists.
        group = mount / path.lstrip("/")
        folders += [(folder, files) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return folders


def _group_memory(folder: Path, files: _Files) -> tuple[int, int] | None:
    """(limit, available) of one group; None where it sets no limit ("max" in version 2, no file at the top)."""
    limit, usage = _read(folder / files.limit), _read(folder / files.usage)
    if limit is None or usage is None or not limit.isdigit():
        return None
    rows = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    cache = sum(int(value) for key, value in rows if key in files.cache_keys)
    return int(limit), max(0, int(limit) - max(0, int(usage) - cache))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
