"""Every command answers `--help` before torch is imported, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("benchmark_latency", "benchmark_throughput", "compare_methods", "compare_offloading", "gpu_report"),
    *("train_head", "widen_model"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command: str) -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts')\n"
        f"import {command}\n"
        f"try: {command}.main(['--help'])\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"scripts/{command}.py" in result.stdout
