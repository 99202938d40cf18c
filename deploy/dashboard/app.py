"""The dashboard as an ASGI application: the page, its data as JSON, nothing else.

Guarantees: GET only, and nothing of the run changes; without the token, where there is one, no answer holds anything of the run; a page of
another site can neither read an answer (the names that this server answers to are listed) nor show it in a frame.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any  # JSON values

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from deploy.dashboard.source import Source
from deploy.report.page import as_json, page

_COOKIE = "reflux_token"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HEALTH = "/healthz"

Answer = Callable[[Request], Awaitable[Response]]


def application(source: Source, *, token: str, hosts: Sequence[str], poll_s: float) -> Starlette:
    """`hosts`: the names by which a browser may call it; `*` for any."""

    async def show(request: Request) -> Response:  # noqa: ARG001
        return HTMLResponse(page(source.facts() | {"live": {"poll_ms": int(1000 * poll_s)}}))

    async def state(request: Request) -> Response:
        asked = request.query_params
        try:
            revision, edition = int(asked.get("revision", "0")), int(asked.get("edition", "0"))
        except ValueError:
            return PlainTextResponse("revision and edition are numbers", 400)
        return _json(source.document(asked.get("epoch", ""), revision, edition))

    async def rollout(request: Request) -> Response:
        try:
            step, seq = int(request.path_params["step"]), int(request.path_params["seq"])
        except ValueError:  # also of thousands of digits
            return PlainTextResponse("step and sample are numbers", 400)
        found = await source.rollout(step, seq)
        return PlainTextResponse("there is no such rollout in the surviving model", 404) if found is None else _json(found)

    async def health(request: Request) -> Response:  # noqa: ARG001
        return PlainTextResponse("ok")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with source.opened():
            yield

    return Starlette(
        routes=[
            Route("/", show),
            Route("/state", state),
            Route("/rollouts/{step}/{seq}", rollout),
            Route(_HEALTH, health),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
            Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            Middleware(BaseHTTPMiddleware, dispatch=_guard(token)),
            Middleware(GZipMiddleware, minimum_size=1000),
        ],
        lifespan=lifespan,
    )


def _json(data: Mapping[str, Any]) -> Response:
    return Response(as_json(data), media_type="application/json")


async def _with_headers(request: Request, answer: Answer) -> Response:
    response = await answer(request)
    response.headers.update(_HEADERS)
    return response


def _guard(token: str) -> Callable[[Request, Answer], Awaitable[Response]]:
    """Lets in who has the token: in the header, in the cookie, or in the address, from which it moves into the cookie."""

    def fits(given: str) -> bool:
        return hmac.compare_digest(given.encode(), token.encode())

    async def guard(request: Request, answer: Answer) -> Response:
        if not token or request.url.path == _HEALTH:
            return await answer(request)
        if fits(request.query_params.get("token", "")):
            response = RedirectResponse(request.url.path)
            response.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
            return response
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if fits(bearer) or fits(request.cookies.get(_COOKIE, "")):
            return await answer(request)
        return PlainTextResponse("open this page once with ?token=… behind its address\n", 401, {"WWW-Authenticate": "Bearer"})

    return guard
