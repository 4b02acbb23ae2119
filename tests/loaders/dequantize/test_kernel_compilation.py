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
# Turing, which knows neither bfloat16 nor float8, to Blackwell.
CAPABILITIES = (75, 80, 86, 89, 90, 120)
KERNELS = (
    "triton_integers._decode",
    "triton_ggml._decode",
    "triton_floats._scaled",
    "triton_floats._fp4",
    "triton_floats._codebook",
    "kernels._lossless",
    "kernels._apart",
    "kernels._approximate",
    "product_kernel._product",
)


def test_all_kernels_compile_for_all_gpus_that_pytorch_serves(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.compiled_kernels", *map(str, CAPABILITIES)],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    compiled = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert compiled == {(name, str(capability)) for name in KERNELS for capability in CAPABILITIES}
