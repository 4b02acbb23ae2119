"""Run language models far larger than the device: stream the layers, draft a tree, verify it in one pass.

Importing this package does not import torch, so `--help` and `--plan` stay fast.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offload_runtime.generation.generation_request import GenerationRequest
    from offload_runtime.generation.runtime import OffloadRuntime

__version__ = "0.1.0"
__all__ = ["GenerationRequest", "OffloadRuntime"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from offload_runtime.start import check_packages

        check_packages()
        from offload_runtime.generation import generation_request, runtime

        return getattr(runtime if name == "OffloadRuntime" else generation_request, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
