"""A server that says what it is told to, for tests of the page; its streams can be held and broken.

python -m tests.fakes.page.page_server runs one by itself, to look at.
"""

import asyncio
import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loaders.sizes import GIB
from offload_runtime.serve.pages import page_routes
from offload_runtime.serve.views import activity_view, plan_view, sampling_view
from scheduler.plan.plan import Limits, make_plan
from sequoia_tree.shaping.settings import Sampling
from tests.plan_samples import LLAMA3_8B, LLAMA3_70B_INT4, gpu

PLAN = make_plan(LLAMA3_70B_INT4, replace(LLAMA3_8B, name="Llama-3-8B"), gpu(24 * GIB, link=25e9), Limits())
TOKEN = re.compile(r"\s*\S+|\s+")
DRAFT_SECONDS, PASS_SECONDS = 0.07, 1.45  # what is told of each pass, however long it took
WAIT = 0.01  # seconds between looks at whether a held stream may go on


@dataclass
class Said:
    """One reply: what it says, how, and what happens after `holds_after` or `breaks_after` passes.

    reads: tokens of the prompt that passes read before the first one that writes. tree_nodes: of each pass's tree.
    error: told in the stream where it breaks; is_cut: the stream ends without its end. status: of the response; with
    another than 200, `message` is that of the error.
    """

    text: str = "hello world"
    reasoning: str = ""
    seconds: float = 0.0
    reads: tuple[int, ...] = ()
    tree_nodes: int = 24
    deepest: int = 4
    holds_after: int | None = None
    breaks_after: int | None = None
    error: str = "the disk broke"
    is_cut: bool = False
    status: int = 200
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"


class PageServer:
    """Says `replies` in turn, the last one ever after; notes what it was asked, and which clients left."""

    def __init__(self, *replies: Said):
        self.asked: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.reset()
        self.say(*(replies or [Said()]))
        routes = [
            *page_routes(),
            Route("/v1/models", self._models),
            Route("/v1/sequoia/plan", self._plan),
            Route("/v1/sequoia/activity", self._activity),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def reset(self) -> None:
        """Forget what was asked and told to say."""
        self.key: str | None = None
        self.plan: dict[str, Any] | None = {**plan_view(PLAN), "sampling": sampling_view(Sampling(top_p=0.9))}
        self.activity = activity_view(None, 0, 0, 1)
        self.say(Said())

    def say(self, *replies: Said) -> None:
        """From now on, say these."""
        self.replies = list(replies)
        self.asked.clear()
        self.left = 0
        self.go_on.clear()

    def __enter__(self) -> "PageServer":
        self._thread.start()
        while not self._server.started:
            time.sleep(WAIT)
        return self

    def __exit__(self, *exception: object) -> None:
        self.go_on.set()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "an API key is needed: --api-key was given to the server")

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"object": "list", "data": [{"id": "Llama-3-70B-int4"}]})

    async def _plan(self, request: Request) -> Response:
        if self.plan is None:
            return _error(404, "not found")
        return self._refused(request) or JSONResponse(self.plan)

    async def _activity(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(self.activity)

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        self.asked.append(await request.json())
        said = self.replies[min(len(self.asked), len(self.replies)) - 1]
        if said.status != 200:
            return _error(said.status, said.message, said.headers)
        return StreamingResponse(self._stream(said), media_type="text/event-stream")

    async def _stream(self, said: Said) -> AsyncIterator[str]:
        number = 0
        try:
            for number, (thought, step) in enumerate(passes(said)):
                if number == said.holds_after:
                    yield ": keep-alive\n\n"
                    while not self.go_on.is_set():
                        await asyncio.sleep(WAIT)
                if number == said.breaks_after:
                    yield _event({"error": {"message": said.error, "type": "server_error", "code": None}})
                    return
                await asyncio.sleep(said.seconds)
                delta = {"reasoning_content": thought} if thought else {"content": "".join(step["pieces"])}
                yield _event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "sequoia": step})
        except asyncio.CancelledError:
            self.left += 1
            raise
        if said.is_cut:
            return
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": said.finish}]})
        yield _event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": number}})
        yield "data: [DONE]\n\n"


def passes(said: Said) -> Iterator[tuple[str, dict[str, Any]]]:
    """Thought and step of each pass; the same for the same reply."""
    for tokens in said.reads:
        yield "", {"drafted": 0, "accepted": 0, "tokens": 0, "read_tokens": tokens, "pieces": [], "tree": None}
    chance = random.Random(len(said.text))
    for text, is_thought in ((said.reasoning, True), (said.text, False)):
        tokens = TOKEN.findall(text)
        while tokens:
            accepted = min(chance.randint(0, said.deepest), len(tokens) - 1)
            taken, tokens = tokens[: accepted + 1], tokens[accepted + 1 :]
            step = {
                "drafted": said.tree_nodes - 1,
                "accepted": accepted,
                "tokens": len(taken),
                "draft_seconds": DRAFT_SECONDS,
                "target_seconds": PASS_SECONDS,
                "streamed_bytes": PLAN.streamed_bytes,
                "pieces": [""] * len(taken) if is_thought else taken,
                "tree": _tree(said.tree_nodes, accepted, chance),
            }
            yield ("".join(taken) if is_thought else ""), step


def _tree(nodes: int, accepted: int, chance: random.Random) -> dict[str, list[int]]:
    """Somewhat like Sequoia's: nodes near the root have the most children, and a path of `accepted` nodes is in it."""
    parents = [-1, *range(accepted)]
    while len(parents) < nodes:
        parents.append(int(len(parents) * chance.random() ** 2.2))
    return {"parents": parents, "accepted": list(range(1, accepted + 1))}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "error"}}, status, headers)


if __name__ == "__main__":
    with PageServer(Said(sys.stdin.read(), seconds=0.3, tree_nodes=64)) as server:
        print(server.url, flush=True)
        threading.Event().wait()
