"""The stand-in's HTTP: the endpoints that Reflux asks, keys as the real server wants them, and death where the real one dies.

`die` ends the process (`python -m deploy.sglang_standin`) or whatever stands for it; the request that caused it gets no answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any  # JSON

from aiohttp import web
from aiohttp.typedefs import Handler

from deploy.sglang_standin.asked import Declined, Fatal, read_generate
from deploy.sglang_standin.model import WrongShapes
from deploy.sglang_standin.service import QueueFull, Service

_OPEN = {"/health", "/health_generate", "/ready"}
_MODES = {"abort", "retract", "in_place"}
_FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)
_VERSION = "0.5.23"  # whose replies it imitates
_MOST_BYTES = 1 << 28


class Endpoints:
    """One method per path."""

    def __init__(self, service: Service, *, api_key: str, admin_key: str, die: Callable[[], None]) -> None:
        self._service = service
        self._api_key, self._admin_key = api_key, admin_key
        self._die = die
        self._control: dict[str, Callable[[dict[str, Any]], Awaitable[web.Response]]] = {
            "/abort_request": self._abort,
            "/pause_generation": self._pause,
            "/continue_generation": self._continue,
            "/flush_cache": self._flush,
            "/update_weights_from_disk": self._update,
            "/weights_checker": self._check,
        }

    def application(self) -> web.Application:
        """Ready to be served."""
        app = web.Application(middlewares=[self._guard], client_max_size=_MOST_BYTES)
        app.router.add_post("/generate", self._generate)
        for path in ("/model_info", "/get_model_info"):
            app.router.add_get(path, self._info)
        app.router.add_get("/server_info", self._software)
        for path in _OPEN:
            app.router.add_get(path, self._health)
        for path in self._control:
            app.router.add_post(path, self._controlled)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Where both keys are set each opens its own endpoints only."""
        if request.path not in _OPEN:
            key = (self._admin_key or self._api_key) if request.path in self._control else self._api_key
            if key and request.headers.get("Authorization") != f"Bearer {key}":
                return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except Declined as error:
            return web.json_response(error.body, status=400)
        except web.HTTPNotFound:
            return web.json_response({"detail": "Not Found"}, status=404)
        except QueueFull:
            said = {"object": "error", "message": "The request queue is full.", "type": "503", "param": None, "code": 503}
            return web.json_response(said, status=503)
        except (Fatal, WrongShapes):
            self._die()
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _generate(self, request: web.Request) -> web.Response:
        return web.json_response(await self._service.generate(read_generate(await _body(request), self._service.model.shape)))

    async def _info(self, _request: web.Request) -> web.Response:
        path = self._service.path
        said = {"model_path": path, "served_model_name": path, "tokenizer_path": str(self._service.model.directory)}
        return web.json_response({**said, "is_generation": True, "weight_version": self._service.weight_version, "load_format": "auto"})

    async def _software(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": _VERSION})

    async def _health(self, _request: web.Request) -> web.Response:
        """The real server's /health takes 20 s to say this while it is paused; nobody should ask it."""
        return web.Response(status=503 if self._service.paused else 200)

    async def _controlled(self, request: web.Request) -> web.Response:
        return await self._control[request.path](await _body(request) if request.can_read_body else {})

    async def _abort(self, body: dict[str, Any]) -> web.Response:
        rid = "" if body.get("abort_all") else body.get("rid")
        if rid is not None:
            await self._service.abort(str(rid))
        return web.Response()

    async def _pause(self, body: dict[str, Any]) -> web.Response:
        mode = body.get("mode", "abort")
        if mode not in _MODES:
            message = "Input should be 'abort', 'retract' or 'in_place'"
            raise Declined({"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400})
        await self._service.pause(mode)
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, _body: dict[str, Any]) -> web.Response:
        self._service.resume()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def _flush(self, _body: dict[str, Any]) -> web.Response:
        if self._service.decoding:
            return web.Response(status=400, text="Flush cache failed.\n")
        return web.Response(text=_FLUSHED)

    async def _update(self, body: dict[str, Any]) -> web.Response:
        label = body.get("weight_version")
        failure = await self._service.update(
            Path(body["model_path"]), label, flush=body.get("flush_cache", True), abort=body.get("abort_all_requests", False)
        )
        told = f" Weight version updated to {label}." if label else ""
        message = failure or f"Succeeded to update model weights.{told}"
        said = {"success": failure is None, "message": message, "num_paused_requests": 0}
        return web.json_response(said, status=400 if failure else 200)

    async def _check(self, _body: dict[str, Any]) -> web.Response:
        sums = await asyncio.to_thread(self._service.model.checksums)
        total = hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()
        said = {"success": True, "message": "Success.", "ranks": [{"checksums": sums}], "per_engine_checksum": total}
        return web.json_response(said)


@asynccontextmanager
async def listening(
    service: Service, *, api_key: str = "", admin_key: str = "", die: Callable[[], None], host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """The address, while it serves."""
    app = Endpoints(service, api_key=api_key, admin_key=admin_key, die=die).application()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        async with asyncio.TaskGroup() as tasks:
            computing = tasks.create_task(service.run(), name="stand-in's maths")
            try:
                yield f"http://{host}:{runner.addresses[0][1]}"
            finally:
                computing.cancel()
    finally:
        await runner.cleanup()


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.text() or "{}")
    except ValueError:
        raise Declined({"object": "error", "message": "JSON decode error", "type": "Bad Request", "param": None, "code": 400}) from None
