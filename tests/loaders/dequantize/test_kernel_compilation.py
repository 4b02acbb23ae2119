"""The fused kernels compile for GPUs that are not here: triton and the assembler it comes with need none for that.

In a process of its own: where triton interprets kernels, as other tests have it do, it cannot compile them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: PyTorch for CUDA brings it")

ROOT = Path(__file__).resolve().parents[3]
OLDEST = 80  # Ampere, which knows bfloat16 but no float8


def test_all_kernels_compile_for_the_oldest_gpu_that_computes_in_bfloat16(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.compiled_kernels", str(OLDEST)],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {"_decode", "_scaled", "_mxfp4", "_codebook"} <= set(done.stdout.split())
