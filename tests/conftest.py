"""One thread per test process: tiny models are quicker on one, and results do not depend on the machine's cores.

The user's cache stays out of it: what was measured of a pair there would change trees, and tests would write to it.
"""

import atexit
import os
import shutil
import tempfile

import torch

torch.set_num_threads(1)
_CACHE = tempfile.mkdtemp(prefix="sequoia-offload-cache-")
os.environ["SEQUOIA_OFFLOAD_CACHE"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
