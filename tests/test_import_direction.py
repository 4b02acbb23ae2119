"""The packages import downwards only, as the README draws it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "loaders": set(),
    "sequoia_tree": set(),
    "scheduler": {"loaders"},
    "offload_runtime": {"loaders", "scheduler", "sequoia_tree"},
}
OURS = {*BELOW, "scripts", "tests", *(path.name for path in (ROOT / "scripts").iterdir() if path.is_dir())}


def imported(source: str) -> Iterator[str]:
    """The top-level packages that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_downwards_only(package: str) -> None:
    files = [*(ROOT / package).rglob("*.py")]
    found = {(file.name, name) for file in files for name in imported(file.read_text()) if name in OURS}
    assert {name for _, name in found} - {package} <= BELOW[package], found
    assert any(name == package for _, name in found), "what is looked for is found"
