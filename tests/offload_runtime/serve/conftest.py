"""What several tests of the server need."""

from collections.abc import Iterator

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET


@pytest.fixture(scope="session")
def pair() -> Iterator[OffloadRuntime]:
    """The bundled pair, in float32 so that rows that share a pass change no token."""
    options = {"dtype": "float32", "context_length": 256, "parallel": 4, "tree_size": 6}
    with OffloadRuntime.from_pretrained(DEMO_TARGET, DEMO_DRAFT, "cpu", **options) as loaded:
        yield loaded
