"""How commands start: named as they were called, ended by Ctrl-C without a traceback, and with our packages only."""

import os
import signal
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from offload_runtime import __version__
from offload_runtime.start import MARK, PACKAGES, ForeignPackageError, check_packages, command_name, start

ROOT = Path(__file__).resolve().parents[3]
MODULES = ("offload_runtime.chat", "offload_runtime.measure_acceptance", "offload_runtime.batch")
# Put first on the path as sitecustomize.py: does something just before a module is imported.
HOOK = """
import os, signal, sys

class Hook:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            {action}

sys.meta_path.insert(0, Hook)
"""


def run_python(first: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with `first` before everything else on its path."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    path = os.pathsep.join([str(first), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=first,
        env={**kept, "PYTHONPATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def write_hook(directory: Path, module: str, action: str) -> None:
    (directory / "sitecustomize.py").write_text(HOOK.format(module=module, action=action))


@pytest.mark.parametrize("module", MODULES)
def test_help_and_version_name_the_command_as_it_was_called(module: str, tmp_path: Path) -> None:
    helped = run_python(tmp_path, "-m", module, "--help", COLUMNS="120")
    assert helped.stdout.startswith(f"usage: python -m {module} [OPTIONS]\n")
    assert f"\n  python -m {module} -m DIR" in helped.stdout and "%(prog)" not in helped.stdout
    assert run_python(tmp_path, "-m", module, "--version").stdout == f"sequoia-offload {__version__}\n"


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("/usr/bin/sequoia-chat", "sequoia-measure-acceptance"),
        ("C:/Scripts/sequoia-chat.exe", "sequoia-measure-acceptance"),
        ("/x/offload_runtime/chat/__main__.py", "python -m offload_runtime.measure_acceptance"),
        ("-c", "python -m offload_runtime.measure_acceptance"),
    ],
)
def test_other_commands_are_named_in_the_way_of_the_running_one(
    called: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert command_name("sequoia-measure-acceptance", "offload_runtime.measure_acceptance") == name


@pytest.mark.parametrize("module", ["offload_runtime.chat.command", "argparse", "loaders.checkpoint.spec", "psutil"])
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(module: str, tmp_path: Path) -> None:
    write_hook(tmp_path, module, "os.kill(os.getpid(), signal.SIGINT)")
    ended = run_python(tmp_path, "-m", "offload_runtime.chat", "--plan")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_while_torch_is_imported_leaves_no_traceback(tmp_path: Path) -> None:
    write_hook(tmp_path, "torch", "os.kill(os.getpid(), signal.SIGINT)")
    ended = run_python(tmp_path, "-m", "offload_runtime.chat", "--quiet", "-p", "hello")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\n")


def test_interrupts_that_are_ignored_stay_ignored(tmp_path: Path) -> None:
    write_hook(tmp_path, "psutil", "os.kill(os.getpid(), signal.SIGINT)")
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from offload_runtime.chat import main; main(['--help'])"
    )
    assert run_python(tmp_path, "-c", code).returncode == 0


@pytest.mark.parametrize("name", PACKAGES)
def test_another_package_of_our_name_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('was imported')")
    ended = run_python(tmp_path, "-m", "offload_runtime.chat", "-p", "hello")
    assert ended.returncode == 1 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: {tmp_path / name}") and f"`{name}`" in ended.stderr
    imported = run_python(tmp_path, "-c", "from offload_runtime import OffloadRuntime")
    assert f"ForeignPackageError: {tmp_path / name}" in imported.stderr.splitlines()[-1]


def test_the_package_that_lies_over_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "scheduler.py").write_text("")
    record = tmp_path / "some_scheduler-2.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: some-scheduler\nVersion: 2.0\n")
    (record / "top_level.txt").write_text("scheduler\n")
    ended = run_python(tmp_path, "-m", "offload_runtime.chat", "--plan")
    assert "some-scheduler was installed over it. Try: pip uninstall some-scheduler, then" in ended.stderr


def test_a_package_that_lost_its_files_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip leaves it where another package's files over it were taken away again."""
    (tmp_path / "loaders").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    monkeypatch.delitem(sys.modules, "loaders", raising=False)
    with pytest.raises(ForeignPackageError, match="`loaders` has lost files"):
        check_packages()


def test_a_dependency_that_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    write_hook(tmp_path, "psutil", "raise ModuleNotFoundError(\"No module named 'psutil'\", name='psutil')")
    ended = run_python(tmp_path, "-m", "offload_runtime.chat", "--plan")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: No module named 'psutil', which sequoia-offload needs")


def test_a_module_of_ours_that_is_missing_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert start("offload_runtime.no_such_command", []) == 1
    assert "sequoia-offload is not installed whole (No module named" in capsys.readouterr().err


def test_a_dependency_that_is_missing_later_is_named_in_one_line(tmp_path: Path) -> None:
    write_hook(tmp_path, "torch", "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    ended = run_python(tmp_path, "-m", "offload_runtime.chat", "--quiet", "-p", "hello")
    assert ended.returncode == 1 and ended.stderr.startswith("error: No module named 'torch', which")


@pytest.mark.parametrize("name", PACKAGES)
def test_our_packages_bear_their_mark(name: str) -> None:
    assert MARK in (ROOT / name / "__init__.py").read_text()
    check_packages()


@pytest.mark.parametrize("given", [None, "active"])
def test_commands_let_threads_wait_passively_and_the_library_leaves_that_alone(
    given: str | None, tmp_path: Path
) -> None:
    write_hook(tmp_path, "torch", "os.write(1, os.environ.get('OMP_WAIT_POLICY', 'unset').encode()); os._exit(0)")
    environment = {} if given is None else {"OMP_WAIT_POLICY": given}
    used = run_python(tmp_path, "-c", "from offload_runtime import OffloadRuntime", **environment)
    assert used.stdout == (given or "unset"), used.stderr
    command = run_python(tmp_path, "-m", "offload_runtime.chat", "--quiet", "-p", "hello", **environment)
    assert command.stdout == (given or "passive"), command.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["offload_runtime.chat", "-p", "hello"],
        ["offload_runtime.serve", "--port", "0"],
        ["offload_runtime.batch", "--input", "jobs.jsonl", "--output", "out.jsonl"],
        ["offload_runtime.measure_acceptance", "--quick"],
    ],
    ids=lambda command: command[0],
)
def test_commands_silence_transformers_before_they_import_it(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "hello"}\n')
    shown = "os.write(1, os.environ.get('TRANSFORMERS_VERBOSITY', 'unset').encode()); os._exit(0)"
    write_hook(tmp_path, "transformers", shown)
    assert run_python(tmp_path, "-m", *command).stdout.endswith("error")
