"""What is built is what is documented: the wheel runs away from the checkout, the sdist holds the tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from offload_runtime import __version__

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("loaders", "offload_runtime", "scheduler", "sequoia_tree")
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "constraints.txt", "pyproject.toml")
SOURCES = (*PACKAGES, "docs", "scripts", "tests", ".ci")
# Straight through the build backend: nothing is downloaded, and the checkout stays as it is.
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('dist'), build_meta.build_sdist('dist'))"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of a copy of the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        "CHANGELOG.md",
        "LICENSE",
        "MANIFEST.in",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / file, copy)
    (copy / "dist").mkdir()
    run = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    wheel, sdist = run.stdout.splitlines()[-1].split()
    return copy / "dist" / wheel, copy / "dist" / sdist


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and with this one's packages behind it."""
    pytest.importorskip("pip")
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True)
    site = next(directory.glob("lib/python*/site-packages"))
    # As a path alone: what is installed to be edited in place stays out, since its .pth files are not followed.
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--no-deps", "--no-index", "--quiet", "--ignore-installed", "--disable-pip-version-check")
    python = str(directory / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, str(built[0])]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return directory


def run_installed(environment: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run an installed command outside the checkout, without what leads Python there."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [str(environment / "bin" / name), *arguments],
        cwd=environment,
        env={**kept, "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_four_typed_packages_and_the_demonstration(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, f"sequoia_offload-{__version__}.dist-info"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    sources = {str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert sources <= names
    demonstration = (ROOT / "offload_runtime" / "demo_pair").rglob("*")
    assert {str(file.relative_to(ROOT)) for file in demonstration if file.is_file()} <= names


def test_the_sdist_holds_tests_and_what_they_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for directory in SOURCES:
        files = {str(file.relative_to(ROOT)) for file in (ROOT / directory).rglob("*") if file.is_file()}
        assert {file for file in files if "__pycache__" not in file and not file.endswith(".pyc")} <= names
    assert set(FILES) <= names


def test_installed_commands_name_themselves_and_what_else_is_installed(environment: Path) -> None:
    for name in ("sequoia-chat", "sequoia-measure-acceptance"):
        helped = run_installed(environment, name, "--help")
        assert helped.stdout.startswith(f"usage: {name} [OPTIONS]\n"), helped.stderr
        assert "python -m" not in helped.stdout and "scripts/" not in helped.stdout
        assert run_installed(environment, name, "--version").stdout == f"sequoia-offload {__version__}\n"


def test_the_installed_packages_are_not_the_checkout(environment: Path) -> None:
    code = "import loaders, offload_runtime; print(loaders.__file__, offload_runtime.__file__)"
    found = run_installed(environment, "python", "-c", code).stdout.split()
    assert [Path(file).is_relative_to(environment) for file in found] == [True, True]


def test_the_installed_demonstration_plans_and_answers(environment: Path) -> None:
    planned = run_installed(environment, "sequoia-chat", "--plan", "--device", "cpu")
    assert planned.returncode == 0 and planned.stdout.startswith("Plan for target"), planned.stderr
    arguments = ("--device", "cpu", "--quiet", "--max-new-tokens", "4", "-p", "What does os.walk do?")
    answered = run_installed(environment, "sequoia-chat", *arguments)
    assert answered.returncode == 0 and answered.stdout.strip() and not answered.stderr, answered.stderr


def test_packages_name_nothing_that_is_not_installed() -> None:
    texts = ((file, file.read_text()) for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    assert not [file.name for file, text in texts if "scripts/" in text]
