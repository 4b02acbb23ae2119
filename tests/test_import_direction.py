"""The packages and their rooms import downwards only, as the README and docs/how-it-works.md draw it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("loaders", "sequoia_tree", "scheduler", "offload_runtime")
BELOW = {
    "loaders": set(),
    "sequoia_tree": set(),
    "scheduler": {"loaders"},
    "offload_runtime": {"loaders", "scheduler", "sequoia_tree"},
}
# From the bottom up: a room imports those before it. A package's own files lie below its rooms.
ROOMS = {
    "loaders": (
        *("safetensors_files", "gguf", "lossless", "formats", "hub", "tokenizers"),
        *("checkpoint", "modules", "heads", "dequantize", "adapters", "io", "quantize"),
    ),
    "sequoia_tree": ("shaping", "shapes", "verification", "acceptance", "drafting", "choice"),
    "scheduler": ("machine", "plan", "streaming"),
    "offload_runtime": (
        *("options", "text", "grammar", "model", "speculation", "planning", "loading"),
        *("prompt_cache", "generation"),
        *("chat", "doctor", "measure_acceptance", "serve", "batch"),
    ),
}
MOST_FILES, MOST_LINES = 15, 400
OURS = {*PACKAGES, "scripts", "tests", *(path.name for path in (ROOT / "scripts").iterdir() if path.is_dir())}


def imports(node: ast.AST) -> Iterator[str]:
    """The modules that some code imports anywhere in it; those of type hints alone are none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child)


def imported(source: str) -> Iterator[str]:
    """The top-level packages that a module imports."""
    return (name.partition(".")[0] for name in imports(ast.parse(source)))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package: str) -> None:
    files = [*(ROOT / package).rglob("*.py")]
    found = {(file.name, name) for file in files for name in imported(file.read_text()) if name in OURS}
    assert {name for _, name in found} - {package} <= BELOW[package], found
    assert any(name == package for _, name in found), "what is looked for is found"


def room(module: str) -> str:
    """The room of a module, or "" where it lies beside the rooms."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if name in ROOMS[package] else ""


def upwards(package: str, module: str, source: str) -> set[tuple[str, str]]:
    """What a module imports that lies above it."""
    rank = {name: number for number, name in enumerate(("", *ROOMS[package]))}
    inside = {name for name in imports(ast.parse(source)) if name.partition(".")[0] == package}
    return {(module, name) for name in inside if rank[room(name)] > rank[room(module)]}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_downwards_only(package: str) -> None:
    files = [file for file in (ROOT / package).rglob("*.py") if file.parent.name != package]
    assert {file.relative_to(ROOT / package).parts[0] for file in files} == set(ROOMS[package])
    modules = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    found = set().union(*(upwards(package, module, file.read_text()) for file, module in modules.items()))
    assert not found


def test_an_import_upwards_is_found() -> None:
    assert upwards("scheduler", "scheduler.plan.plan", "def f():\n    from scheduler.streaming.ring import Ring")
    assert not upwards("scheduler", "scheduler.streaming.ring", "from scheduler.plan.plan import Plan")
    assert not upwards("scheduler", "scheduler.plan.plan", "if TYPE_CHECKING:\n    import scheduler.streaming.ring")


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_and_files_stay_small(package: str) -> None:
    files = [*(ROOT / package).rglob("*.py")]
    rooms = {file.parent for file in files}
    assert not {room.name: count for room in rooms if (count := len([*room.glob("*.py")])) > MOST_FILES}
    assert not {file.name: count for file in files if (count := len(file.read_text().splitlines())) > MOST_LINES}
