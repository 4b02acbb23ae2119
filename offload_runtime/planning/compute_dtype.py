"""The dtype to compute in if the device lacks bfloat16. Imports no torch."""

from pathlib import Path

from loaders.checkpoint.spec import ModelSpec
from offload_runtime.errors import MachineError, UnsupportedModelError
from scheduler.machine.machine import Machine

# Their hidden states exceed float16's range (65504) on ordinary text; vLLM rejects most of them in float16, too.
OVERFLOWS_IN_FLOAT16 = {"gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "glm4", "plamo2"}


def compute_dtype(spec: ModelSpec, asked: str, machine: Machine) -> str:
    """The dtype of `spec`, or a replacement for bfloat16: float32 on a CPU, float16 on a GPU.

    asked: the user's choice, or "auto". Raises MachineError if the user chose bfloat16, UnsupportedModelError for a
    model that is known to overflow in float16.
    """
    if asked == "auto" and machine.device == "cpu" and spec.dtype != "float32" and not _cpu_has_bfloat16():
        return "float32"
    if spec.dtype != "bfloat16" or machine.has_bfloat16:
        return spec.dtype
    device = f"{machine.device_name} (compute capability {(machine.capability or 0) / 10:.1f})"
    if asked != "auto":
        raise MachineError(f"{device} has no bfloat16.\n  --dtype float16   is what it computes fast in")
    if spec.model_type in OVERFLOWS_IN_FLOAT16:
        raise UnsupportedModelError(
            f"{spec.name} is made for bfloat16, which {device} does not have, and {spec.model_type} overflows in "
            "float16.\n  --dtype float32   computes in twice the bytes\n  --device cpu      runs without the GPU"
        )
    return "float16"


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 matrix instructions; without them, products are about 50 times slower."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    features = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return not features.isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})
