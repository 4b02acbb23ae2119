"""The page at `/`: static files, held in memory, under a policy that lets nothing but these files run."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).with_name("page")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Besides what may load: text can never become HTML, since no policy of trusted types is allowed to make any.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked again each time, so that a new version is one page, not half of two
}


def page_routes() -> list[Route]:
    """Routes of the page: `/`, and a file each below `/page/`. They hold no secrets and need no API key."""
    return [Route("/" if path == "index.html" else f"/page/{path}", _serve(file)) for path, file in _files()]


def _files() -> Iterator[tuple[str, Path]]:
    files = sorted(file for file in PAGE.rglob("*") if file.suffix in MEDIA_TYPES)
    return ((file.relative_to(PAGE).as_posix(), file) for file in files)


def _serve(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Answer with a file, read once; with 304 where the browser has it already."""
    content, media_type = file.read_bytes(), MEDIA_TYPES[file.suffix]
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def endpoint(request: Request) -> Response:
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return endpoint
