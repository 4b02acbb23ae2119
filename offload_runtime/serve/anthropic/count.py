"""POST /v1/messages/count_tokens: how many tokens a prompt has, without writing anything."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from offload_runtime.errors import OffloadError
from offload_runtime.serve.anthropic.request import read_counted
from offload_runtime.serve.api.asked import Offer
from offload_runtime.serve.engine import Engine
from offload_runtime.serve.errors import of_runtime
from offload_runtime.serve.http.answers import JsonResponse
from offload_runtime.serve.http.body import read_object


def count_tokens(engine: Engine, offer: Offer) -> Callable[[Request], Awaitable[Response]]:
    """The function that answers."""

    async def answer(request: Request) -> Response:
        asked = read_counted(await read_object(request), offer)
        offer.check_length(asked)
        try:
            count = await asyncio.wrap_future(engine.count(asked))
        except OffloadError as error:
            raise of_runtime(error) from error
        return JsonResponse({"input_tokens": count})

    return answer
