"""A stand-in server in the test's own process: real HTTP on a free port, its death is the end of its listening."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from deploy.sglang_standin.model import open_model
from deploy.sglang_standin.service import Service
from deploy.sglang_standin.web import Endpoints, listening


async def prefers(endpoints: Endpoints, _request: web.Request) -> web.Response:
    """/model_info of a server that was started with --preferred-sampling-params."""
    told = {"model_path": endpoints._service.path, "weight_version": endpoints._service.weight_version}
    return web.json_response({**told, "preferred_sampling_params": {"top_k": 20}})


class StandIn:
    """Where it listens, and whether a request has killed it."""

    def __init__(self, url: str, service: Service, dead: asyncio.Event) -> None:
        self.url = url
        self.service = service
        self.dead = dead

    async def post(self, path: str, body: object = None, key: str = "") -> tuple[int, object]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with aiohttp.ClientSession(headers=headers) as session, session.post(self.url + path, json=body) as response:
            return response.status, await (response.json() if response.content_type == "application/json" else response.text())

    async def get(self, path: str) -> tuple[int, object]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await (response.json() if response.content_type == "application/json" else response.text())


@asynccontextmanager
async def stand_in(
    directory: Path, *, slots: int = 8, api_key: str = "", admin_key: str = "", most_queued: int = 0, port: int = 0
) -> AsyncIterator[StandIn]:
    service = Service(model=open_model(directory, "float32", slots), weight_version="default", most_queued=most_queued)
    dead = asyncio.Event()
    async with listening(service, api_key=api_key, admin_key=admin_key, die=dead.set, port=port) as url:
        yield StandIn(url, service, dead)
