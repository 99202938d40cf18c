"""A router as a real one was recorded: /generate passes in turn, without the fields that it does not know; no control plane."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

_DROPPED = {"return_flat_raw_top_logprobs", "return_flat_raw_top_logprobs_b64", "return_sampling_mask", "return_prompt_token_ids"}


@asynccontextmanager
async def router(*urls: str) -> AsyncIterator[str]:
    """Its address."""
    turns = itertools.cycle(urls)

    async with aiohttp.ClientSession() as session:

        async def generate(request: web.Request) -> web.Response:
            body = {name: value for name, value in (await request.json()).items() if name not in _DROPPED}
            async with session.post(f"{next(turns)}/generate", json=body) as reply:
                return web.Response(body=await reply.read(), status=reply.status, content_type=reply.content_type)

        async def info(_request: web.Request) -> web.Response:
            async with session.get(f"{next(turns)}/get_model_info") as reply:
                return web.json_response(await reply.json())

        async def unknown(_request: web.Request) -> web.Response:
            return web.Response(status=404)

        app = web.Application()
        app.router.add_post("/generate", generate)
        app.router.add_get("/get_model_info", info)
        app.router.add_route("*", "/{path:.*}", unknown)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
