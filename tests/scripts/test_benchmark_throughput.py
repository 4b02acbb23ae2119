"""The benchmark of texts that share passes, on a tiny model with random weights that streams from disk."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmark_throughput import main  # noqa: E402

SMALL = (
    *("--shape", "small", "--shape-dtype", "float32", "--device", "cpu", "--device-memory", "96MiB"),
    *("--prompt-tokens", "8", "--repeats", "1", "--new-tokens", "6", "--quiet"),
)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


def test_bytes_of_a_pass_do_not_grow_with_the_texts(capsys) -> None:
    assert main([*SMALL, "--texts", "1,3"]) == 0
    shown = capsys.readouterr()
    table = rows(shown.out)
    assert [row[:2] for row in table] == [["1 text", "1"], ["3 texts", "1"], ["3 texts", "3"]]
    nbytes = [float(row[6]) for row in table[1:]]
    assert nbytes[1] == pytest.approx(nbytes[0], rel=0.1) and nbytes[0] > 0.05, "layers ahead of a pass count in it"
    assert float(table[2][4]) == 1.0, "a token of each text"
    assert "Traceback" not in shown.err


def test_mistakes_are_answered_without_torch() -> None:
    code = "import sys; sys.argv = ['x', '--texts', '0']; sys.path.insert(0, 'scripts')\n"
    code += "from benchmark_throughput import main\ntry:\n    main()\nexcept SystemExit as end:\n"
    code += "    assert end.code == 2 and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
