"""Run language models far larger than the device: stream the layers, draft a tree, verify it in one pass.

Importing this package does not import torch: `--help` and `--plan` stay quick.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offload_runtime.runtime import OffloadRuntime

# Read once, when torch loads its threads. Threads that spin while they wait take the cores that read and that compute:
# on two busy cores replies of the demonstration pair came 4 times slower with OpenMP's default.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = ["OffloadRuntime"]


def __getattr__(name: str) -> object:
    if name == "OffloadRuntime":
        from offload_runtime.runtime import OffloadRuntime

        return OffloadRuntime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
