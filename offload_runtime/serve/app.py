"""The ASGI application around the table of endpoints: counts requests, guards, and makes every error JSON."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload_runtime.serve.api.fields import LONGEST_NAME
from offload_runtime.serve.endpoints import Service, endpoints
from offload_runtime.serve.errors import INTERNAL, ApiError, openai_body
from offload_runtime.serve.http.answers import JsonResponse
from offload_runtime.serve.http.guard import Access, Guard
from offload_runtime.serve.metrics import CountedRequests


def make_app(service: Service, access: Access) -> Starlette:
    """The application; errors are in the form of their endpoint."""
    table = endpoints(service)
    shapes = {one.path: one.error for one in table}
    told = (one for one in table if one.path.startswith("/v1/") or one.path in ("/health", "/metrics"))
    known = ", ".join(f"{one.method} {one.path}" for one in told).replace("{name:path}", "NAME")
    access = Access(access.api_key, access.loopback, access.origins, {one.path for one in table if one.open})

    def failure(path: str, error: ApiError) -> Response:
        around = (shape for endpoint, shape in shapes.items() if path.startswith(f"{endpoint}/"))
        form = shapes.get(path) or next(around, openai_body)
        return JsonResponse(form(error), error.status, error.headers)

    async def answer(request: Request, error: Exception) -> Response:
        return failure(request.url.path, _api_error(request, error, known))

    middleware = [Middleware(CountedRequests, service.metrics, [one.path for one in table])]
    if access.origins:
        headers = ("Authorization", "Content-Type", "X-API-Key")
        middleware.append(
            Middleware(CORSMiddleware, access.origins, allow_methods=("GET", "POST"), allow_headers=headers)
        )
    middleware.append(Middleware(Guard, access, failure))
    return Starlette(
        routes=[Route(one.path, one.app, methods=[one.method]) for one in table],
        middleware=middleware,
        exception_handlers={ApiError: answer, HTTPException: answer, Exception: answer},
    )


def _api_error(request: Request, error: Exception, known: str) -> ApiError:
    """The answer to any exception. known: the endpoints, for requests to others."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        asked = f"{request.method} {request.url.path}"[:LONGEST_NAME]
        return ApiError(error.status_code, f"there is no {asked}; there are {known}", headers=error.headers)
    return ApiError(500, INTERNAL, code="internal")
