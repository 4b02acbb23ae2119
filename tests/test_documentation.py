"""What the documents promise: their commands can be run, their links and the files that they name exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from offload_runtime.batch.arguments import parse_arguments as parse_batch_arguments
from offload_runtime.chat import main
from offload_runtime.measure_acceptance.options import parse_arguments
from offload_runtime.options.arguments import parse_chat_arguments
from offload_runtime.options.run_options import DEMO_PAIR
from offload_runtime.serve.options import parse_serve_arguments

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docs" / "comparison" / "README.md"]
STANDS_FOR = {"DIR": str(DEMO_PAIR / "target"), "SMALL_DIR": str(DEMO_PAIR / "draft")}
WIDEST_LINE = 132  # of prose; tables and the list of changes have one line for each entry
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"`((?:loaders|scheduler|sequoia_tree|offload_runtime|scripts|tests|docs)/[\w./-]+)`")


def blocks(text: str) -> Iterator[str]:
    """Lines of code, fenced or indented."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("$ ").removeprefix(".venv/bin/")


def commands(program: str) -> list[list[str]]:
    lines = (line for document in DOCUMENTS for line in blocks(document.read_text(encoding="utf-8")))
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


CHATS, MEASUREMENTS = commands("sequoia-chat"), commands("sequoia-measure-acceptance")
JOBS, SERVERS = commands("sequoia-batch"), commands("sequoia-serve")


@pytest.mark.parametrize("arguments", CHATS, ids=" ".join)
def test_commands_of_the_chat_are_understood(arguments: list[str]) -> None:
    assert parse_chat_arguments(arguments)


@pytest.mark.parametrize("arguments", MEASUREMENTS, ids=" ".join)
def test_commands_of_the_measurement_are_understood(arguments: list[str]) -> None:
    assert parse_arguments(arguments)


@pytest.mark.parametrize("arguments", JOBS, ids=" ".join)
def test_commands_of_jobs_are_understood(arguments: list[str]) -> None:
    assert parse_batch_arguments(arguments)


@pytest.mark.parametrize("arguments", SERVERS, ids=" ".join)
def test_commands_of_the_server_are_understood(arguments: list[str]) -> None:
    assert parse_serve_arguments(arguments)


@pytest.mark.parametrize(
    "arguments", [one for one in CHATS if "DIR" in one and not {"ADAPTER_DIR", "ORG/SMALL"} & {*one}], ids=" ".join
)
def test_commands_over_a_directory_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On the bundled pair; what would write a reply says what it would do instead, and the one reply is short."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path))
    line = [STANDS_FOR.get(word, word) for word in arguments]
    line += ["--max-new-tokens", "3"] if "-p" in line else ["--plan"]
    assert main([*line, *(["--device", "cpu"] if "--gpu" not in line else [])]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one.name != "CHANGELOG.md"], ids=lambda one: one.name)
def test_prose_fits_in_a_line(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
    assert not [line for line in prose if len(line) > WIDEST_LINE]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_there_are_commands() -> None:
    assert len(CHATS) > 10 and MEASUREMENTS and JOBS and SERVERS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [name for name in NAMED.findall(text) if not (ROOT / name).exists() and "*" not in name]
    assert not missing
