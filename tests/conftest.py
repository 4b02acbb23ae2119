"""One thread per test process: tiny models are quicker on one, and results do not depend on the machine's cores.

The user's cache and history stay out of it: what was measured of a pair there would change trees, and tests would write
to them.
"""

import atexit
import gc
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # times of a machine that others use, too, say nothing
settings.load_profile("shared")
_CACHE = tempfile.mkdtemp(prefix="sequoia-offload-cache-")
os.environ["SEQUOIA_OFFLOAD_CACHE"] = _CACHE
os.environ["SEQUOIA_OFFLOAD_STATE"] = f"{_CACHE}/state"
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands tests to others needs no torch: they start the sooner."""
    if not config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the GPU are skipped, with the reason, where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword: those are also the names of folders, the checkout's too
                item.add_marker(
                    pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() says there is none")
                )


def pytest_collection_finish() -> None:
    """No garbage collection looks again at what imports have made: it stays, and is nearly all there is."""
    gc.collect()
    gc.freeze()
