"""POST /load_model, by which `transformers chat` has a model loaded before it asks: it is here already."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from offload_runtime.serve.api.asked import Offer, SseEvent
from offload_runtime.serve.api.fields import Fields
from offload_runtime.serve.http.answers import EVENTS, frame
from offload_runtime.serve.http.body import read_object


def load_model(offer: Offer) -> Callable[[Request], Awaitable[Response]]:
    """The function that answers."""

    async def answer(request: Request) -> Response:
        model = offer.read_model(Fields(await read_object(request)))
        ready = {"status": "ready", "model": model, "cached": True}
        return Response(frame(SseEvent(ready)), headers=EVENTS)

    return answer
