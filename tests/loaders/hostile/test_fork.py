"""A fork of a process that has loaded a model is told so: the threads that stream are not in it."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from offload_runtime.errors import UsageError
from tests.samples.tiny_models import PROMPT, checkpoint, streaming_runtime

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
PATIENCE = 120  # seconds; what hangs would hang for ever


def in_a_fork(work: Callable[[], None]) -> bool:
    """Whether a fork of this process ends after `work` raised a UsageError that names the fork."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except UsageError as error:
            os._exit(0 if "is a fork without its threads" in str(error) else 3)
        os._exit(2)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_streamed_model_is_refused_in_a_fork_and_goes_on_in_its_own_process():
    with streaming_runtime(checkpoint("llama")) as runtime:
        expected = runtime.generate(list(PROMPT), max_new_tokens=6, temperature=0).token_ids
        assert in_a_fork(lambda: runtime.generate(list(PROMPT), max_new_tokens=6))
        steps = runtime.stream(list(PROMPT), max_new_tokens=6, temperature=0)
        begun = list(next(steps).token_ids)
        assert in_a_fork(lambda: next(steps) and None)

        def closed() -> None:
            runtime.close()  # nothing to stop there, and nothing of the parent's is stopped
            runtime.generate(list(PROMPT), max_new_tokens=1)

        closing = os.fork()
        if closing == 0:
            try:
                closed()
            except UsageError:
                os._exit(0)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(closing, 0)[1]) == 0
        assert begun + [token for step in steps for token in step.token_ids] == expected
