"""An HTTP server that does what a test says: it answers, stalls, breaks off, is full or is gone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Script = Callable[["ScriptedServer", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def scored(body: dict[str, Any]) -> dict[str, Any]:
    """What a server answers to a scoring request without top ids."""
    ids = body["input_ids"][body["logprob_start_len"] :]
    entries = [[None if place == 0 else -1.0, one, None] for place, one in enumerate(ids)]
    return {"text": "", "output_ids": [], "meta_info": {"input_token_logprobs": entries, "finish_reason": {"type": "length", "length": 0}}}


async def answers(_server: "ScriptedServer", _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(scored(body))


async def breaks_off(_server: "ScriptedServer", request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def stalls(_server: "ScriptedServer", _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def is_full(_server: "ScriptedServer", _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"message": "The request queue is full.", "code": 503}, status=503)


class ScriptedServer:
    """Notes what it was asked. `script` may be changed at any time."""

    def __init__(self, script: Script = answers) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.looks = 0
        self.software = {"version": "0.5.23"}
        self.now = self.most = 0
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/model_info", self._info)
        app.router.add_get("/server_info", self._software)
        app.router.add_post("/generate", self._generate)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _info(self, _request: web.Request) -> web.Response:
        self.looks += 1
        return web.json_response({"model_path": "/m", "weight_version": "default"})

    async def _software(self, _request: web.Request) -> web.Response:
        return web.json_response(self.software)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.script(self, request, body)
        finally:
            self.now -= 1


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[list[ScriptedServer]]:
    servers = [ScriptedServer(script) for script in scripts]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.stop()
