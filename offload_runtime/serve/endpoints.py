"""The table of endpoints: what is answered at which path."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from offload_runtime.errors import ModelFilesError
from offload_runtime.serve.anthropic.count import count_tokens
from offload_runtime.serve.anthropic.errors import anthropic_body
from offload_runtime.serve.anthropic.request import read_request
from offload_runtime.serve.api.asked import MOST_TEXTS, Offer
from offload_runtime.serve.api.chat import read_chat
from offload_runtime.serve.api.completion import read_completion
from offload_runtime.serve.api.load_model import load_model
from offload_runtime.serve.api.token_texts import TokenTexts
from offload_runtime.serve.engine import Engine, Watch
from offload_runtime.serve.errors import ApiError, openai_body
from offload_runtime.serve.generation import Generation
from offload_runtime.serve.http.answers import JsonResponse
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
        Endpoint(
            "POST", "/v1/messages/count_tokens", count_tokens(service.engine, service.offer), error=anthropic_body
        ),
        Endpoint("POST", "/load_model", load_model(service.offer)),
        Endpoint("GET", "/v1/models", _models(service)),
        Endpoint("GET", "/v1/models/{name:path}", _model(service)),
        Endpoint("GET", "/v1/sequoia/plan", _plan(service)),
        Endpoint("GET", "/v1/sequoia/activity", _activity(service)),
        Endpoint("GET", "/health", _health(service), open=True),
        Endpoint("GET", "/metrics", _metrics(service)),
    )


def _models(service: Service) -> Answer:
    async def models(request: Request) -> Response:
        return JsonResponse({"object": "list", "data": [_described(service, service.offer.model)]})

    return models


def _model(service: Service) -> Answer:
    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        service.offer.check_model(name)
        return JsonResponse(_described(service, name))

    return model


def _described(service: Service, name: str) -> dict[str, Any]:
    length = service.runtime.context_length
    about = {"id": name, "object": "model", "created": service.started, "owned_by": PROJECT}
    return {**about, "context_length": length, "max_model_len": length}


def _plan(service: Service) -> Answer:
    async def plan(request: Request) -> Response:
        runtime = service.runtime
        return JsonResponse({**plan_view(runtime.plan), "sampling": sampling_view(runtime.generation_defaults)})

    return plan


def _activity(service: Service) -> Answer:
    async def activity(request: Request) -> Response:
        runtime, engine = service.runtime, service.engine
        return JsonResponse(activity_view(runtime.progress, engine.running, engine.waiting, runtime.parallel))

    return activity


def _health(service: Service) -> Answer:
    async def health(request: Request) -> Response:
        engine = service.engine
        status = {"status": "ok" if engine.is_serving else "stopping"}
        counts = {"running": engine.running, "waiting": engine.waiting, "parallel": service.runtime.parallel}
        return JsonResponse({**status, **counts}, 200 if engine.is_serving else 503)

    return health


def _metrics(service: Service) -> Answer:
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.as_text(), media_type=CONTENT_TYPE)

    return metrics
