"""Which build of PyTorch is installed, without importing it."""

import runpy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class TorchBuild:
    """version: as in `torch.__version__`, "2.13.0+cu130". cuda: the CUDA version it is built for, "13.0", or None.

    The metadata of a wheel may say less: "2.13.0" for the default CUDA build.
    """

    version: str
    cuda: str | None


@lru_cache(maxsize=1)
def torch_build() -> TorchBuild:
    """The build as the installed package's `version.py` states it. ImportError if torch is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    stated = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(str(stated["__version__"]), stated.get("cuda"))
