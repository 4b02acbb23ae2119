"""Figures for Prometheus."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload_runtime.serve.generation import OUTCOME

if TYPE_CHECKING:
    from offload_runtime.generation.decode import Step
    from offload_runtime.generation.running_text import RunningText
    from offload_runtime.serve.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
TOKENS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
_OUTCOMES = {2: "ok", 4: "refused", 5: "failed"}


class Metrics:
    """Counts requests and passes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry, name = self._registry, "sequoia"
        self._requests = Counter(
            f"{name}_requests", "requests answered, by what became of them", ["path", "outcome"], registry=registry
        )
        self._waiting = Gauge(f"{name}_texts_waiting", "texts that wait for a place", registry=registry)
        self._running = Gauge(f"{name}_texts_running", "texts that are being written", registry=registry)
        self._prompt = Counter(f"{name}_prompt_tokens", "tokens of prompts", registry=registry)
        self._cached = Counter(f"{name}_cached_tokens", "tokens of prompts found in the cache", registry=registry)
        self._tokens = Counter(f"{name}_tokens", "tokens written", registry=registry)
        self._drafted = Counter(f"{name}_drafted_tokens", "tokens drafted", registry=registry)
        self._accepted = Counter(f"{name}_accepted_tokens", "drafted tokens that were accepted", registry=registry)
        self._bytes = Counter(f"{name}_streamed_bytes", "bytes of weights over the link", registry=registry)
        self._seconds = Histogram(
            f"{name}_pass_seconds", "wall time of a pass for all texts", buckets=SECONDS, registry=registry
        )
        self._per_pass = Histogram(
            f"{name}_tokens_per_pass", "tokens that a pass wrote of one text", buckets=TOKENS, registry=registry
        )

    def watch(self, engine: "Engine") -> None:
        """Show the texts of an engine."""
        self._waiting.set_function(lambda: engine.waiting)
        self._running.set_function(lambda: engine.running)

    def passed(self, steps: "Sequence[tuple[RunningText, Step]]", seconds: float) -> None:
        """Count a pass; called by the engine."""
        self._seconds.observe(seconds)
        # every step tells the bytes of the whole pass
        self._bytes.inc(max((step.streamed_bytes for _, step in steps), default=0))
        for text, step in steps:
            self._tokens.inc(len(step.token_ids))
            self._drafted.inc(step.drafted)
            self._accepted.inc(step.accepted)
            stats = text.reply.stats
            if step.token_ids:
                self._per_pass.observe(len(step.token_ids))
            if step.token_ids and stats.passes == 1:
                self._prompt.inc(stats.prompt_tokens)
                self._cached.inc(stats.prompt_tokens - stats.prompt_tokens_read)

    def answered(self, path: str, outcome: str) -> None:
        """Count a request."""
        self._requests.labels(path, outcome).inc()

    def as_text(self) -> bytes:
        """All figures, in Prometheus' form."""
        return generate_latest(self._registry)


class CountedRequests:
    """An ASGI application in front of another: counts what becomes of the requests to known paths."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            outcome = "busy" if status == 503 else _OUTCOMES.get(status // 100, "refused")
            self._metrics.answered(path, scope.get(OUTCOME, outcome))
