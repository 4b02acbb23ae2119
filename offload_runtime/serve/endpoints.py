"""The table of endpoints: what is answered at which path."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from offload_runtime.errors import ModelFilesError, OffloadError
from offload_runtime.serve.anthropic.errors import anthropic_body
from offload_runtime.serve.anthropic.request import read_counted, read_request
from offload_runtime.serve.api.asked import MOST_TEXTS, Offer, SseEvent
from offload_runtime.serve.api.chat import read_chat
from offload_runtime.serve.api.completion import read_completion
from offload_runtime.serve.api.fields import Fields
from offload_runtime.serve.api.token_texts import TokenTexts
from offload_runtime.serve.engine import Engine, Watch
from offload_runtime.serve.errors import ApiError, of_runtime, openai_body
from offload_runtime.serve.generation import Generation
from offload_runtime.serve.http.answers import EVENTS, JsonResponse, frame
from offload_runtime.serve.http.body import read_object
from offload_runtime.serve.metrics import CONTENT_TYPE, Metrics
from offload_runtime.serve.pages import page_routes
from offload_runtime.serve.views import activity_view, plan_view, sampling_view
from offload_runtime.start import PROJECT

if TYPE_CHECKING:
    from offload_runtime.generation.runtime import OffloadRuntime

Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Service:
    """What endpoints answer from."""

    runtime: "OffloadRuntime"
    engine: Engine
    offer: Offer
    metrics: Metrics
    started: int  # seconds since 1970

    async def count_tokens(self, request: Request) -> Response:
        """How many tokens a prompt of Anthropic's form has, without writing anything."""
        asked = read_counted(await read_object(request), self.offer)
        self.offer.check_length(asked)
        try:
            count = await asyncio.wrap_future(self.engine.count(asked))
        except OffloadError as error:
            raise of_runtime(error) from error
        return JsonResponse({"input_tokens": count})

    async def load_model(self, request: Request) -> Response:
        """For `transformers chat`, which has a model loaded before it asks: it is here already."""
        model = self.offer.read_model(Fields(await read_object(request)))
        ready = {"status": "ready", "model": model, "cached": True}
        return Response(frame(SseEvent(ready)), headers=EVENTS)

    async def models(self, request: Request) -> Response:
        """A list of one."""
        return JsonResponse({"object": "list", "data": [self._described(self.offer.model)]})

    async def one_model(self, request: Request) -> Response:
        """The model, by a name that requests may give it."""
        name = request.path_params["name"]
        self.offer.check_model(name)
        return JsonResponse(self._described(name))

    async def plan(self, request: Request) -> Response:
        """What lies where, and what requests are sampled with."""
        runtime = self.runtime
        return JsonResponse({**plan_view(runtime.plan), "sampling": sampling_view(runtime.generation_defaults)})

    async def activity(self, request: Request) -> Response:
        """What happens right now."""
        runtime, engine = self.runtime, self.engine
        return JsonResponse(activity_view(runtime.progress, engine.running, engine.waiting, runtime.parallel))

    async def health(self, request: Request) -> Response:
        """Whether texts are let in: status 503 if not."""
        engine = self.engine
        status = {"status": "ok" if engine.is_serving else "stopping"}
        counts = {"running": engine.running, "waiting": engine.waiting, "parallel": self.runtime.parallel}
        return JsonResponse({**status, **counts}, 200 if engine.is_serving else 503)

    async def figures(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.as_text(), media_type=CONTENT_TYPE)

    def _described(self, name: str) -> dict[str, Any]:
        length = self.runtime.context_length
        about = {"id": name, "object": "model", "created": self.started, "owned_by": PROJECT}
        return {**about, "context_length": length, "max_model_len": length}


def make_service(
    runtime: "OffloadRuntime", model: str | None, shown_model: str, queue: int, watches: Iterable[Watch] = ()
) -> Service:
    """What answers from a loaded runtime, whose engine is not started.

    model: the only name that requests may give. watches: told of every pass.
    """
    metrics = Metrics()
    engine = Engine(runtime, queue, [metrics, *watches])
    metrics.watch(engine)
    texts = min(engine.most, MOST_TEXTS)
    token_texts, longest = TokenTexts(lambda: runtime.tokenizer), _longest_prompt(runtime)
    offer = Offer(model or shown_model, model is None, texts, token_texts, longest)
    return Service(runtime, engine, offer, metrics, int(time.time()))


def _longest_prompt(runtime: "OffloadRuntime") -> int | None:
    """Characters that the longest token would make of a whole context; loads the tokenizer before the first request."""
    try:
        names = runtime.tokenizer.get_vocab()
    except ModelFilesError:  # a model without a tokenizer still continues token ids
        return None
    return runtime.context_length * max(map(len, names))


@dataclass(frozen=True)
class Endpoint:
    """A row of the table. app: an ASGI application, or a function from a request to its response.

    open: answered without an API key. error: the JSON of errors.
    """

    method: str
    path: str
    app: ASGIApp | Answer
    open: bool = False
    error: Callable[[ApiError], Mapping[str, Any]] = openai_body


def endpoints(service: Service) -> tuple[Endpoint, ...]:
    """The table."""
    writing = {"/v1/chat/completions": read_chat, "/v1/completions": read_completion}
    return (
        *(Endpoint("GET", route.path, route.endpoint, open=True) for route in page_routes()),
        *(Endpoint("POST", path, Generation(service.engine, service.offer, read)) for path, read in writing.items()),
        Endpoint("POST", "/v1/messages", Generation(service.engine, service.offer, read_request), error=anthropic_body),
        Endpoint("POST", "/v1/messages/count_tokens", service.count_tokens, error=anthropic_body),
        Endpoint("POST", "/load_model", service.load_model),
        Endpoint("GET", "/v1/models", service.models),
        Endpoint("GET", "/v1/models/{name:path}", service.one_model),
        Endpoint("GET", "/v1/sequoia/plan", service.plan),
        Endpoint("GET", "/v1/sequoia/activity", service.activity),
        Endpoint("GET", "/health", service.health, open=True),
        Endpoint("GET", "/metrics", service.figures),
    )
