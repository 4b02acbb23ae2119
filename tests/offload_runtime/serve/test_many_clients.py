"""50 clients that come and go at random: every finished text is right, nothing hangs, nothing is left over.

SERVE_CLIENTS_SECONDS=120 lets them do so for two minutes.
"""

import os
import threading

from offload_runtime import OffloadRuntime
from tests.fakes.random_clients import Crowd
from tests.fakes.served import Served, wait_until
from tests.fakes.shared_runtime import SharedRuntime, answer_to

SECONDS = float(os.environ.get("SERVE_CLIENTS_SECONDS", "4"))
CLIENTS = 50
PROMPTS = [f"Show me the code of `{name}`." for name in ("textwrap.dedent", "json.loads", "os.walk", "heapq.merge")]
GREEDY = {"temperature": 0, "max_tokens": 24}
PARALLEL = 4


def check_nothing_is_left(served: Served, threads: int) -> None:
    """All places are free, and can all be taken again."""
    wait_until(lambda: (served.engine.places, served.engine.running, served.engine.waiting) == (0, 0, 0))
    wait_until(lambda: threading.active_count() <= threads)
    assert served.chat(PROMPTS[0], n=PARALLEL, max_tokens=2).status == 200


def crowded(served: Served, expected: dict[str, str], **body: object) -> Crowd:
    assert served.chat(PROMPTS[0], **body).status == 200
    threads = threading.active_count()
    crowd = Crowd(served, expected, CLIENTS, body)
    crowd.run(SECONDS)
    assert not crowd.wrong
    assert crowd.outcomes.get("whole", 0) and crowd.outcomes.get("streamed", 0) and crowd.outcomes.get("left", 0)
    check_nothing_is_left(served, threads)
    return crowd


def test_over_a_runtime_that_is_told_what_to_write() -> None:
    runtime = SharedRuntime(parallel=PARALLEL, seconds=0.004)
    with Served(runtime, queue=12) as served:
        crowd = crowded(served, {prompt: answer_to(prompt) for prompt in PROMPTS})
        assert runtime.most == PARALLEL and not runtime.open
        assert crowd.outcomes["busy"] and crowd.outcomes["several"] and crowd.outcomes["bad"]


def test_over_the_bundled_pair(pair: OffloadRuntime) -> None:
    messages = {prompt: [{"role": "user", "content": prompt}] for prompt in PROMPTS}
    expected = {prompt: pair.generate(one, 24, temperature=0).text for prompt, one in messages.items()}
    with Served(pair, queue=40) as served:
        assert pair.parallel == PARALLEL
        crowded(served, expected, **GREEDY)
