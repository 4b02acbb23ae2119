"""Sizes in bytes, as people write them: "20GiB", "512MB", "1.5 GB"."""

import re
from fractions import Fraction

MIB, GIB = 1024**2, 1024**3

_FACTORS = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in ((letter, 1000), (letter + "b", 1000), (letter + "ib", 1024))
}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_EXAMPLES = "write a size as 20GiB, 512MB, 1.5 GB or a number of bytes"


def parse_size(size: str | int) -> int:
    """Return `size` in bytes: an int is bytes, GiB counts in 1024s, GB and G in 1000s.

    Raises ValueError, with examples, for everything else.
    """
    if isinstance(size, bool) or not isinstance(size, (str, int)):
        raise ValueError(f"{size!r} is not a size: {_EXAMPLES}")
    match = _PATTERN.fullmatch(str(size).strip().lower())
    if match is None or match[2] not in _FACTORS:
        raise ValueError(f"{size!r} is not a size: {_EXAMPLES}")
    return int(Fraction(match[1]) * _FACTORS[match[2]])


def format_size(nbytes: int) -> str:
    """Format bytes for people, in decimal units: "1.71 GB", "22.5 GB", "141 GB"."""
    value, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    decimals = 0 if units[0] == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f} {units[0]}"


def format_cap(nbytes: int) -> str:
    """Format bytes for a command line, rounded up: `parse_size` of the result is never below `nbytes`."""
    unit, name = (GIB, "GiB") if nbytes >= GIB else (MIB, "MiB")
    tenths = -(-nbytes * 10 // unit)
    return f"{tenths // 10}.{tenths % 10}{name}" if tenths % 10 else f"{tenths // 10}{name}"
